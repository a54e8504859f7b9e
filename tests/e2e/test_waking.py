"""The chart's activator and the real KEDA: there is no pod, the first request of each protocol is
held, wakes the model and is answered; twenty callers at once lose nothing; silence ends the pod.

KEDA looks every 2 s and waits 2 s more before the last pod goes; the query remembers a request for
5 s. Prometheus runs beside the test and scrapes every second.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest

from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.e2e import asks
from tests.e2e.helm import Release, small
from tests.e2e.kube import CommandFailed, Kube, until
from tests.e2e.prometheus import PORT, Prometheus, scraping
from tests.e2e.scaling import keda_times

MODEL = "qwen-vl"
CALLERS = 20
HELD_S = 180  # a start on two cores that others use, twice
IDLE_S = 90  # to no pod: the query's memory, KEDA's look and cooldown, and the pod's end
TIMES = {"pollingInterval": 2, "cooldownPeriod": 2}
PROTOCOLS = ("rest", "sse", "grpc")


def values() -> object:
    """One model without pods, behind an activator. The query forgets a request after five seconds
    instead of two minutes, so that silence ends the pod within the test's patience."""
    own = '{namespace="{{ .Namespace }}",model="{{ .Name }}"}'
    forgets = (
        f"sum(predictors_activator_requests_in_progress{own}) + "
        f"(sum(increase(predictors_activator_requests_total{own}[5s])) or vector(0))"
    )
    model = {
        "format": "qwen-vl",
        "storage": {"uri": "pvc://checkpoints/shapes-qwen-vl"},
        "settings": {"compute": {"device": "cpu"}},
        "replicas": {"min": 0, "max": 1},
        "timeoutSeconds": 60,
        "drain": {"preStopSeconds": 1, "lingerSeconds": 1, "graceSeconds": 60},
        "activator": {"enabled": True, "waitTimeoutSeconds": HELD_S},
        "autoscaling": {
            "enabled": True,
            "serverAddress": f"http://127.0.0.1:{PORT}",
            "wakeQuery": forgets,
            "scaleDownSeconds": 0,
        },
    }
    return {**small(), "models": {MODEL: model}, "tests": {"enabled": False}}


class Door:
    """The activator's Service, as callers in the cluster reach it."""

    def __init__(self, kube: Kube, release: str) -> None:
        self.name = f"{release}-predictors-{MODEL}-activator"
        spec = kube.get("service", self.name)["spec"]
        ports = {each["name"]: each["port"] for each in spec["ports"]}
        self.url = f"http://{spec['clusterIP']}:{ports['http1']}"
        self.target = f"{spec['clusterIP']}:{ports['h2c']}"

    def rest(self) -> None:
        """One V2 request, not repeated."""
        with httpx.Client(base_url=self.url, timeout=HELD_S + 60, trust_env=False) as http:
            reply = http.post(f"/v2/models/{MODEL}/infer", json=asks.words_body())
        outputs = {each["name"] for each in asks.checked(reply)["outputs"]}
        assert "text" in outputs, outputs

    def sse(self) -> None:
        """One streamed chat: several events, then its end."""
        body = {
            "model": MODEL, "stream": True, "max_tokens": 8, "ignore_eos": True,
            "messages": [{"role": "user", "content": "Hello"}],
        }  # fmt: skip
        with (
            httpx.Client(base_url=self.url, timeout=HELD_S + 60, trust_env=False) as http,
            http.stream("POST", "/v1/chat/completions", json=body) as reply,
        ):
            lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
        assert reply.status_code == 200, lines
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert lines[-1] == "data: [DONE]", lines[-1]
        assert not [event for event in events if "error" in event]
        assert any(event["choices"] for event in events)

    def grpc(self) -> None:
        """One V2 inference over h2c."""
        request = pb.ModelInferRequest(model_name=MODEL)
        tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"Hello")
        request.parameters["max_tokens"].int64_param = 4
        with grpc.insecure_channel(self.target) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            answer = stub.ModelInfer(request, timeout=HELD_S + 60)
        assert "text" in [output.name for output in answer.outputs], answer

    def ask(self, protocol: str) -> None:
        ways: dict[str, Callable[[], None]] = {
            "rest": self.rest, "sse": self.sse, "grpc": self.grpc,
        }  # fmt: skip
        ways[protocol]()


@pytest.fixture(scope="module")
def watched(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the namespace's pods."""
    with scraping(kube, {}, tmp_path_factory.mktemp("prometheus")) as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def door(kube: Kube, watched: Prometheus) -> Iterator[Door]:
    """The release, once its activator is ready."""
    release = Release("one", kube.namespace)
    with keda_times(TIMES):
        release.install([], values())
        found = Door(kube, "one")
        kube.wait(f"deployment/{found.name}", "condition=Available", 120)
        kube.wait(f"deployment/{MODEL}-predictor", "create", 60)
        yield found
        release.uninstall(wait=False)


def pods_of_model(kube: Kube) -> int:
    """Those that leave included: they still answer."""
    return len(kube.list("pods", f"serving.kserve.io/inferenceservice={MODEL}"))


def asleep(kube: Kube) -> float:
    """Seconds until the model wants no replica and has no pod."""
    began = time.monotonic()

    def is_asleep() -> bool:
        deployment = kube.get("deployment", f"{MODEL}-predictor")
        return deployment["spec"].get("replicas", 1) == 0 and not pods_of_model(kube)

    until("no pod of the model", is_asleep, IDLE_S)
    return time.monotonic() - began


def test_the_first_request_of_each_protocol_is_answered_and_twenty_callers_lose_nothing(
    kube: Kube, kept: Path, door: Door, watched: Prometheus
) -> None:
    took: dict[str, float] = {}
    for protocol in PROTOCOLS:
        took[f"idle to 0 before {protocol}"] = asleep(kube)
        began = time.monotonic()
        door.ask(protocol)
        took[f"woken to the first answer over {protocol}"] = time.monotonic() - began

    took["idle to 0 before the callers"] = asleep(kube)
    began = time.monotonic()
    together = threading.Barrier(CALLERS)

    def ask(number: int) -> str:
        together.wait(60)
        try:
            door.ask(PROTOCOLS[number % len(PROTOCOLS)])
        except (AssertionError, httpx.HTTPError, grpc.RpcError) as error:
            return f"{PROTOCOLS[number % len(PROTOCOLS)]}: {error}"
        return ""

    with ThreadPoolExecutor(CALLERS) as pool:
        lost = [each for each in pool.map(ask, range(CALLERS)) if each]
    took[f"woken to the last answer of {CALLERS}"] = time.monotonic() - began
    assert lost == []

    series = f'predictors_activator_requests_total{{model="{MODEL}",outcome="proxied"}}'
    proxied = CALLERS + len(PROTOCOLS)
    until("all are counted", lambda: watched.value(f"sum({series})") == proxied, 30)
    wakes = watched.value(f'sum(predictors_activator_wakes_total{{model="{MODEL}"}})')
    # kept, not judged: KEDA looks every second here, and may set the replicas first
    took["wakes"] = wakes
    print({name: round(each, 1) for name, each in took.items()})
    (kept / "waking.json").write_text(json.dumps(took))
    asleep(kube)


def test_the_activator_may_set_the_scale_of_its_model_and_nothing_else(
    kube: Kube, door: Door
) -> None:
    account = f"system:serviceaccount:{kube.namespace}:{door.name}"

    def may(*words: str) -> bool:
        try:
            return kube("auth", "can-i", *words, f"--as={account}").strip() == "yes"
        except CommandFailed:  # "no" is an exit code
            return False

    model, own = f"deployments.apps/{MODEL}-predictor", f"deployments.apps/{door.name}"
    assert may("patch", model, "--subresource=scale")
    assert may("get", model, "--subresource=scale")
    assert not may("patch", own, "--subresource=scale")
    assert not may("patch", model)
    assert not may("get", "pods")
    assert not may("list", "secrets")
