"""When a process takes itself for a pod that may speak, and what it says when it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from predictors.cluster.account import Account, find_account
from predictors.settings import ClusterSettings, InvalidSetting
from tests.cluster.apiserver import NAMESPACE, POD, SERVICE, environment

AUTO, ON, OFF = (ClusterSettings(events=events) for events in ("auto", "on", "off"))
COMPLETE = environment(6443)


def without(*names: str) -> dict[str, str]:
    """The environment, less some variables."""
    return {name: value for name, value in COMPLETE.items() if name not in names}


@pytest.mark.parametrize("settings", [AUTO, ON], ids=lambda s: s.events)
def test_a_pod_with_a_token_speaks(settings: ClusterSettings, folder: Path) -> None:
    found = find_account(settings, COMPLETE, folder)
    assert found == Account(folder, "127.0.0.1", "6443", NAMESPACE, POD, SERVICE)


def test_whoever_turns_it_off_is_obeyed(folder: Path) -> None:
    assert find_account(OFF, COMPLETE, folder) is None


def test_a_machine_that_is_no_pod_is_silent(tmp_path: Path) -> None:
    assert find_account(AUTO, {}, tmp_path / "nothing") is None


@pytest.mark.parametrize("file", ["token", "ca.crt"])
def test_a_pod_without_a_token_is_silent_and_refuses_to_be_told_to_speak(
    file: str, folder: Path
) -> None:
    (folder / file).write_text("")
    assert find_account(AUTO, COMPLETE, folder) is None
    with pytest.raises(InvalidSetting, match="CLUSTER_EVENTS is on, but there is no ServiceAcc"):
        find_account(ON, COMPLETE, folder)


@pytest.mark.parametrize("name", ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "POD_NAME"])
def test_what_is_missing_is_named(name: str, folder: Path) -> None:
    assert find_account(AUTO, without(name), folder) is None
    with pytest.raises(InvalidSetting, match=name):
        find_account(ON, without(name), folder)


def test_a_pod_that_was_not_told_its_name_takes_the_hosts_and_the_mounted_namespace(
    folder: Path,
) -> None:
    own = without("POD_NAME", "POD_NAMESPACE") | {"HOSTNAME": "x-1"}
    found = find_account(AUTO, own, folder)
    assert found is not None
    assert (found.pod, found.namespace) == ("x-1", NAMESPACE)


def test_a_pod_of_no_inference_service_speaks_of_itself(folder: Path) -> None:
    found = find_account(AUTO, without("INFERENCE_SERVICE_NAME"), folder)
    assert found is not None
    assert found.service == ""
