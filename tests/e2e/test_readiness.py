"""Probes that tell the truth: a hung engine is restarted and a busy one is not, a killed pod takes
only its own work along, and a drained node leaves what the budget protects.

All of it with the product's image and the one layer by which a test makes an engine's step hang.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e import asks
from tests.e2e.helm import LAPTOP, Release, server_image, small
from tests.e2e.image.places import FAULTY
from tests.e2e.kube import (
    CommandFailed,
    Kube,
    Watch,
    condition,
    name_of,
    restarts_of,
    run,
    until,
)
from tests.e2e.readiness import Witness, check_never_early, refusals, witnessing
from tests.e2e.traffic import Traffic, over_http

CLIENTS = 6
STALL_S = 3.0  # `queue.stall_timeout_s`
RESTART_S = 30.0  # stalled, found out three seconds in a row, ended within its grace
BUSY_US = 60_000_000  # the deadline of a picture that keeps the engine busy, microseconds
BUSY_S = 20.0  # how long a busy engine is watched: long enough to be taken for a hung one
DYING_S = 2.0  # from SIGKILL to the port's end, for a process with some GB mapped
NOTICED_S = 3.0  # from the Service's endpoints to the node's rules, which are written once a second
PROTECTED = "qwen-vl"
SIZES = "320x320,256x256,192x192,128x128"  # a warm-up that takes its time
HANG = "/tmp/hang"
KILL_AT_WORK = r"""
import os, re, urllib.request
told = ""
while not re.search(r'^predictors_requests_running\{model="qwen-vl"\} [2-9]', told, re.M):
    told = urllib.request.urlopen("http://127.0.0.1:9090/metrics").read().decode()
os.kill(-1, 9)
"""
DRAINED = {"e2e": "drained"}  # so that a drain finds no pod of anybody else


def faulty_image() -> str:
    """The product's image with the layer that can hang, beside it."""
    return server_image().rpartition(":")[0] + ":" + FAULTY.rpartition(":")[2]


def values(min_available: int = 1) -> dict[str, Any]:
    """One picture server that is soon called stalled, and two protected word servers."""
    settings = {"queue": {"stall_timeout_s": STALL_S}}
    given = small(faulty_image(), settings=settings)
    watched = {"settings": {"flux": {"sizes": SIZES}}}
    protected = {
        "replicas": {"min": 2},
        "pdb": {"enabled": True, "minAvailable": min_available},
        "podLabels": DRAINED,
    }
    return {**given, "models": {"flux": watched, PROTECTED: protected}}


@pytest.fixture(scope="module")
def starts() -> list[Witness]:
    """The record of the installation."""
    return []


@pytest.fixture(scope="module")
def release(kube: Kube, starts: list[Witness]) -> Release:
    """Both models, served."""
    found = Release("probed", kube.namespace)
    with witnessing(kube) as witness:
        found.install([LAPTOP], values())
        kube.wait_served(*asks.MODELS)
        kube.ready_pods("flux", 1)
        kube.ready_pods(PROTECTED, 2)
    starts.append(witness)
    return found


def picture(url: str, **asked: int) -> httpx.Response:
    """One answer of the picture server, whatever it is."""
    return httpx.post(
        f"{url}/v2/models/flux/infer",
        json=asks.picture_body(**asked),
        timeout=asks.PATIENCE_S,
        trust_env=False,
    )


def test_the_readiness_route_refuses_until_every_promised_shape_is_warm(
    kube: Kube, release: Release, starts: list[Witness]
) -> None:
    (witness,) = starts
    start = check_never_early(kube, witness, "flux")
    refused = refusals(witness, name_of(kube.pods("flux")[0]), start)
    print(f"warm-up {start.ready_s - start.warming_s:.2f} s, refused {refused} times")
    assert refused >= 3


def test_a_pod_whose_engine_hangs_is_restarted_and_serves_again(
    kube: Kube, release: Release
) -> None:
    (pod,) = kube.ready_pods("flux", 1)
    url, name, restarts = kube.url("flux"), name_of(pod), restarts_of(pod)
    kube.exec(name, "touch", HANG)
    began_s = time.time()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        lost = pool.submit(picture, url)
        until("the pod is restarted", lambda: restarts_of(kube.get("pod", name)) > restarts, 90)
        restarted_s = time.time()
        until("the hang is over", lambda: kube.exec(name, "rm", "-f", HANG) == "", 20)
        failed = lost.exception(60)
    until("it is ready again", lambda: is_ready(kube, name), 90)
    spent_s = restarted_s - began_s, time.time() - began_s
    assert spent_s[0] < RESTART_S
    print("restarted {:.1f} s after the hang, ready after {:.1f} s".format(*spent_s))
    assert restarts_of(kube.get("pod", name)) == restarts + 1
    assert isinstance(failed, httpx.HTTPError) or lost.result().status_code in {503, 504}
    told = kube("get", "events", "--field-selector", f"involvedObject.name={name}")
    # the kubelet says this at the end; of the probe's own failures it may drop some events
    assert "failed liveness probe, will be restarted" in told, told
    asks.check_png(asks.png_of(asks.checked(picture(url))), 64, 64)


def is_ready(kube: Kube, pod: str) -> bool:
    """True if a pod is ready now."""
    return condition(kube.get("pod", pod), "Ready") == "True"


def test_a_pod_that_is_merely_busy_is_left_alone(kube: Kube, release: Release) -> None:
    (pod,) = kube.ready_pods("flux", 1)
    url, name = kube.url("flux"), name_of(pod)
    with kube.watch("pods", "serving.kserve.io/inferenceservice=flux") as watch:
        end_s = time.time() + BUSY_S
        with concurrent.futures.ThreadPoolExecutor(7) as pool:
            looks = pool.submit(liveness, f"http://{pod['status']['podIP']}:8080", end_s)
            drawn = sum(pool.map(lambda _: keep_busy(url, end_s), range(6)))
        after = kube.get("pod", name)
    slowest_s = max(spent_s for _, spent_s in looks.result())
    print(f"{drawn} pictures in {BUSY_S:g} s and more; slowest look {slowest_s * 1000:.0f} ms")
    assert drawn >= 6
    assert {status for status, _ in looks.result()} == {200}
    assert restarts_of(after) == restarts_of(pod)
    assert {condition(each.thing, "Ready") for each in watch.of(name)} == {"True"}


def liveness(url: str, end_s: float) -> list[tuple[int, float]]:
    """Status and seconds of every look at the liveness route until a time."""
    looks = []
    with httpx.Client(trust_env=False, timeout=5.0) as http:
        while (began_s := time.time()) < end_s:
            status = http.get(f"{url}/v2/health/live").status_code
            looks.append((status, time.time() - began_s))
            time.sleep(0.2)
    return looks


def keep_busy(url: str, end_s: float) -> int:
    """Ask for large pictures, one after the other, until a time; gives how many were drawn."""
    drawn = 0
    while time.time() < end_s:
        reply = picture(url, width=256, height=256, steps=40, seed=drawn, timeout=BUSY_US)
        asks.check_png(asks.png_of(asks.checked(reply)), 256, 256)
        drawn += 1
    return drawn


def test_a_killed_pod_loses_only_its_own_work(kube: Kube, release: Release, kept: Path) -> None:
    victim, survivor = map(name_of, kube.ready_pods(PROTECTED, 2))
    dial = over_http(kube.url(PROTECTED), asks.write_long)
    saved = kept / "traffic kill.jsonl"
    with (
        kube.watch("endpointslices") as watch,
        Traffic(dial, clients=CLIENTS, pooled=False, pause_s=0.1, saved=saved) as traffic,
    ):
        traffic.wait_answered(12)
        with traffic.around("kill") as window:
            begun_s = time.time()
            kill_server(kube, victim)
            killed_s = time.time()
            gone_s = until("it is out of the Service", lambda: left_service(watch, victim, begun_s))
            traffic.wait_answered(12)
        lines = kube.log_lines(survivor)
        kube.ready_pods(PROTECTED, 2)
        with traffic.around("afterwards") as after:
            traffic.wait_answered(12)
    print(window, f"it left the Service after {gone_s - killed_s:.1f} s", *window.failed, sep="\n")
    answered = {line.get("request_id") for line in lines}
    lost = [each for each in window.failed if not each.failure.startswith("ConnectError")]
    assert lost, "it held no work when killed"
    # its port takes connections until the kernel has torn the process down
    assert all(each.began_s <= killed_s + DYING_S for each in lost), lost
    for each in window.failed:
        assert each.question not in answered, f"the survivor had it: {each}"
        # until the kubelet has noticed, new connections are still led there, and refused
        assert each.began_s <= gone_s + NOTICED_S, f"failed afterwards: {each}"
    assert answered & {each.question for each in window.outcomes if not each.failure}
    after.assert_none_failed()


def kill_server(kube: Kube, pod: str) -> None:
    """SIGKILL for every process of the pod but PID 1, which a container's own can't be sent.

    It comes while the server itself says that it answers at least two questions.
    """
    with contextlib.suppress(CommandFailed):  # the shell that kills may go, too
        kube.exec(pod, "python", "-c", KILL_AT_WORK)


def left_service(watch: Watch, pod: str, since_s: float) -> float | None:
    """When the Service's endpoints first lacked a pod as ready, Unix seconds."""
    for seen in list(watch.seen):
        ends = [e for e in seen.thing.get("endpoints") or [] if e["targetRef"]["name"] == pod]
        if seen.at_s > since_s and ends and not any(e["conditions"]["ready"] for e in ends):
            return seen.at_s
    return None


@contextmanager
def schedulable_again(nodes: list[str]) -> Iterator[None]:
    """Whatever happens, pods may be placed on these nodes afterwards."""
    try:
        yield
    finally:
        run("kubectl", "uncordon", *nodes)


def drain(nodes: list[str], timeout_s: int) -> None:
    """`kubectl drain` of the protected pods alone; raises `CommandFailed` when it is refused."""
    chosen = ",".join(f"{label}={value}" for label, value in DRAINED.items())
    run(
        "kubectl", "drain", *nodes, f"--timeout={timeout_s}s", f"--pod-selector={chosen}",
        "--ignore-daemonsets", "--delete-emptydir-data", timeout_s=timeout_s + 60,
    )  # fmt: skip


def test_a_drained_node_keeps_what_the_budget_protects(
    kube: Kube, release: Release, kept: Path
) -> None:
    kube.ready_pods(PROTECTED, 2)
    nodes = [name_of(node) for node in kube.list("nodes")]
    dial = over_http(kube.url(PROTECTED), asks.write)
    saved = kept / "traffic drain.jsonl"
    with Traffic(dial, clients=2, pooled=False, pause_s=0.2, saved=saved) as traffic:
        traffic.wait_answered(4)
        with traffic.around("drain") as window:
            with schedulable_again(nodes):
                with pytest.raises(CommandFailed, match="disruption budget"):
                    drain(nodes, timeout_s=8)  # it tries again every five seconds
                (left,) = kube.pods(PROTECTED)[:1]
                assert is_ready(kube, name_of(left))
            kube.ready_pods(PROTECTED, 2)
    print(window)
    window.assert_none_failed()
    drain_goes_through_when_allowed(kube, release, nodes)  # and leaves other values: the last test


def drain_goes_through_when_allowed(kube: Kube, release: Release, nodes: list[str]) -> None:
    """The same drain with a budget that allows it; serves again afterwards."""
    old = {name_of(pod) for pod in kube.ready_pods(PROTECTED, 2)}
    release.upgrade([LAPTOP], values(min_available=0))
    with schedulable_again(nodes):
        drain(nodes, timeout_s=60)
        assert not {name_of(pod) for pod in kube.pods(PROTECTED)} & old
    kube.ready_pods(PROTECTED, 2)
