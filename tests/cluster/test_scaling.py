"""A Deployment is raised from zero replicas by its scale, and never lowered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from predictors.cluster.api import ApiRefusal, ApiUnavailable, KubernetesApi
from predictors.cluster.scaling import DeploymentScale
from tests.cluster.apiserver import NAMESPACE, PATIENCE_S, State, identity

PATH = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/flux-predictor/scale"


@pytest.fixture
def scale(folder: Path, port: int, state: State) -> Iterator[DeploymentScale]:
    """The scale of a Deployment without replicas."""
    named = {"name": "flux-predictor", "namespace": NAMESPACE, "resourceVersion": "41"}
    state.objects[PATH] = {"kind": "Scale", "metadata": named, "spec": {}}  # 0 is left out
    api = KubernetesApi.of_pod(identity(folder, port), PATIENCE_S)
    yield DeploymentScale(api, NAMESPACE, "flux-predictor")
    api.close()


def test_no_replicas_become_one_once(scale: DeploymentScale, state: State) -> None:
    assert scale.raise_from_zero()
    assert state.objects[PATH]["spec"] == {"replicas": 1}
    assert not scale.raise_from_zero()
    assert len(state.asked("PATCH", PATH)) == 1


def test_replicas_that_are_there_are_left_alone(scale: DeploymentScale, state: State) -> None:
    state.objects[PATH]["spec"] = {"replicas": 3}
    assert not scale.raise_from_zero()
    assert state.asked("PATCH", PATH) == []


def test_an_object_that_changed_meanwhile_is_left_to_the_next_look(
    scale: DeploymentScale, state: State
) -> None:
    state.statuses[f"PATCH {PATH}"] = 409
    assert not scale.raise_from_zero()
    (change,) = state.asked("PATCH", PATH)
    assert change["metadata"] == {"resourceVersion": "41"}


@pytest.mark.parametrize(
    ("status", "kind"), [(403, ApiRefusal), (404, ApiRefusal), (503, ApiUnavailable)]
)
def test_a_refusal_is_raised(
    scale: DeploymentScale, state: State, status: int, kind: type[Exception]
) -> None:
    state.statuses[f"PATCH {PATH}"] = status
    with pytest.raises(kind):
        scale.raise_from_zero()
