"""Finding the pod's identity, and the message if a part of it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from predictors.cluster.identity import PodIdentity, find_pod_identity
from predictors.settings import ClusterSettings, InvalidSetting
from tests.cluster.apiserver import NAMESPACE, POD, SERVICE, environment

AUTO, ON, OFF = (ClusterSettings(events=events) for events in ("auto", "on", "off"))
COMPLETE = environment(6443)


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in COMPLETE.items() if name not in names}


@pytest.mark.parametrize("settings", [AUTO, ON], ids=lambda s: s.events)
def test_a_pod_with_a_token_has_an_identity(settings: ClusterSettings, folder: Path) -> None:
    found = find_pod_identity(settings, COMPLETE, folder)
    assert found == PodIdentity(folder, "127.0.0.1", "6443", NAMESPACE, POD, SERVICE)


def test_there_is_no_identity_if_events_are_off(folder: Path) -> None:
    assert find_pod_identity(OFF, COMPLETE, folder) is None


def test_there_is_no_identity_outside_of_a_pod(tmp_path: Path) -> None:
    assert find_pod_identity(AUTO, {}, tmp_path / "nothing") is None


@pytest.mark.parametrize("file", ["token", "ca.crt"])
def test_without_a_token_there_is_no_identity_and_on_is_refused(file: str, folder: Path) -> None:
    (folder / file).write_text("")
    assert find_pod_identity(AUTO, COMPLETE, folder) is None
    with pytest.raises(InvalidSetting, match="CLUSTER_EVENTS is on, but there is no ServiceAcc"):
        find_pod_identity(ON, COMPLETE, folder)


@pytest.mark.parametrize("name", ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "POD_NAME"])
def test_a_missing_variable_is_named(name: str, folder: Path) -> None:
    assert find_pod_identity(AUTO, without(name), folder) is None
    with pytest.raises(InvalidSetting, match=name):
        find_pod_identity(ON, without(name), folder)


def test_without_pod_name_the_host_name_and_the_mounted_namespace_are_used(
    folder: Path,
) -> None:
    own = without("POD_NAME", "POD_NAMESPACE") | {"HOSTNAME": "x-1"}
    found = find_pod_identity(AUTO, own, folder)
    assert found is not None
    assert (found.pod, found.namespace) == ("x-1", NAMESPACE)


def test_a_pod_without_an_inference_service_has_an_identity(folder: Path) -> None:
    found = find_pod_identity(AUTO, without("INFERENCE_SERVICE_NAME"), folder)
    assert found is not None
    assert found.service == ""
