"""`helm install` of the laptop profile to answered requests, an upgrade without a failed request,
and an uninstall that leaves nothing. Any order: a test that needs the release installs it
first.
"""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.e2e import answers, asks
from tests.e2e.helm import LAPTOP, Release, small
from tests.e2e.kube import Kube, name_of, until
from tests.e2e.readiness import Witness, check_never_early, witnessing
from tests.e2e.rollout import change

CHANGED = {"queue": {"capacity": 32}, "flux": {"slots": 2}}
ONE_PORT = {"health": {"port": -1}, "metrics": {"port": -1}}
"""As charts without these values were: the upgrade moves probes and metrics to their own ports."""


@pytest.fixture(scope="module")
def before(kube: Kube) -> set[str]:
    """The objects of the namespace without a release."""
    return kube.snapshot()


@pytest.fixture(scope="module")
def starts() -> list[Witness]:
    """The records of the installations of this module."""
    return []


@pytest.fixture
def release(kube: Kube, before: set[str], starts: list[Witness]) -> Release:
    """The laptop profile, installed and served."""
    found = Release("laptop", kube.namespace)
    if found.name not in installed(kube):
        with witnessing(kube) as witness:
            found.install([LAPTOP], small() | ONE_PORT)
            kube.wait_served(*asks.MODELS)
            for model in asks.MODELS:
                kube.ready_pods(model, 1)
        starts.append(witness)
    return found


def installed(kube: Kube) -> set[str]:
    """The names of the namespace's releases."""
    labels = kube.list("secrets", "owner=helm")
    return {secret["metadata"]["labels"]["name"] for secret in labels}


def capacity(kube: Kube, model: str) -> float:
    """`queue.capacity` as the model's pod itself reports it."""
    address, ports = kube.service(model)
    port = ports.get("metrics", ports["http1"])
    text = httpx.get(f"http://{address}:{port}/metrics", trust_env=False).text
    (line,) = [x for x in text.splitlines() if x.startswith("predictors_queue_capacity{")]
    return float(line.split()[-1])


def test_readiness_is_never_true_before_warm_up_ends(
    kube: Kube, release: Release, starts: list[Witness]
) -> None:
    for model in asks.MODELS:
        print(model, check_never_early(kube, starts[-1], model))


def test_the_service_draws_a_picture_over_v2_rest(kube: Kube, release: Release) -> None:
    for width, height in ((64, 64), (128, 96)):
        answers.draw(kube, width, height)


def test_the_service_describes_that_picture_over_v2_grpc(kube: Kube, release: Release) -> None:
    print(answers.describe(kube))


def test_the_service_streams_to_openais_client(kube: Kube, release: Release) -> None:
    print(answers.stream(kube))


def test_a_pod_reaches_the_stream_by_dns_name(kube: Kube, release: Release) -> None:
    assert answers.stream_by_name(kube)


def test_helm_test_passes(kube: Kube, release: Release) -> None:
    said = release.test()
    assert "Phase:          Succeeded" in said, said
    assert "Failed" not in said, said


def test_an_upgrade_and_a_rollback_fail_no_request(
    kube: Kube, release: Release, kept: Path
) -> None:
    revision = release.history()[-1]["revision"]
    was = {model: capacity(kube, model) for model in asks.MODELS}
    assert set(was.values()) == {64}

    def upgrade() -> None:
        release.upgrade([LAPTOP], small(settings=CHANGED))

    up = change(kube, "upgrade", kept, upgrade)
    assert {capacity(kube, model) for model in asks.MODELS} == {32}
    back = change(kube, "rollback", kept, lambda: release.rollback(revision))
    assert {model: capacity(kube, model) for model in asks.MODELS} == was
    for window in [*up, *back]:
        window.assert_none_failed(at_least=3)  # how many there were is the machine's affair


def test_uninstall_leaves_nothing_but_the_claim(
    kube: Kube, release: Release, before: set[str]
) -> None:
    with_release = kube.snapshot()
    assert any(name.startswith("inferenceservice") for name in with_release - before)
    release.uninstall()
    until("all is gone", lambda: kube.snapshot() == before, 120)
    assert [name_of(each) for each in kube.list("pvc")] == ["checkpoints"]
