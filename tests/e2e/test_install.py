"""`helm install` of the laptop profile to answered requests, and an uninstall that leaves nothing.
Any order: a test that needs the release installs it first.
"""

from __future__ import annotations

import pytest

from tests.e2e import answers, asks
from tests.e2e.helm import LAPTOP, Release, small
from tests.e2e.kube import Kube, name_of, until
from tests.e2e.readiness import Witness, check_never_early, witnessing


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
            found.install([LAPTOP], small())
            kube.wait_served(*asks.MODELS)
            for model in asks.MODELS:
                kube.ready_pods(model, 1)
        starts.append(witness)
    return found


def installed(kube: Kube) -> set[str]:
    """The names of the namespace's releases."""
    labels = kube.list("secrets", "owner=helm")
    return {secret["metadata"]["labels"]["name"] for secret in labels}


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


def test_uninstall_leaves_nothing_but_the_claim(
    kube: Kube, release: Release, before: set[str]
) -> None:
    with_release = kube.snapshot()
    assert any(name.startswith("inferenceservice") for name in with_release - before)
    release.uninstall()
    until("all is gone", lambda: kube.snapshot() == before, 120)
    assert [name_of(each) for each in kube.list("pvc")] == ["checkpoints"]
