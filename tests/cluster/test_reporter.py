"""Events and annotations reach the API server, and its failures do not block the process."""

from __future__ import annotations

import logging
import socket
import threading
from pathlib import Path

import pytest

from predictors.cluster import reporter as reporter_module
from predictors.cluster.api import ApiUnavailable, KubernetesApi
from predictors.cluster.events import PodEvent
from predictors.cluster.identity import PodIdentity
from predictors.cluster.reporter import EventReporter
from predictors.settings import ClusterSettings
from tests.cluster.apiserver import (
    EVENTS,
    PATIENCE_S,
    POD,
    POD_PATH,
    SERVICE,
    SERVICE_PATH,
    State,
    api_server,
    certificate,
    identity,
)
from tests.cluster.conftest import BRISK, MakeReporter

NEVER = ClusterSettings(interval_s=3600.0, timeout_s=PATIENCE_S)


def warming(done: int) -> PodEvent:
    return PodEvent("WarmingUp", f"{done} of 7", "flux", is_deferrable=True)


def is_running() -> bool:
    return "cluster-reporter" in [thread.name for thread in threading.enumerate()]


def test_an_event_is_about_the_pod_and_about_its_service(
    port: int, state: State, reporting: MakeReporter
) -> None:
    reporting(port).report(PodEvent("EngineFailed", "it broke", "flux", is_warning=True))
    state.wait_for(lambda: len(state.events) == 2)
    pod, service = state.events
    assert pod["involvedObject"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": "models", "name": POD, "uid": "pod-uid",
    }  # fmt: skip
    assert service["involvedObject"] == {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "namespace": "models", "name": SERVICE, "uid": "service-uid",
    }  # fmt: skip
    for event in (pod, service):
        assert (event["reason"], event["message"], event["type"], event["count"]) == (
            "EngineFailed", "it broke", "Warning", 1,
        )  # fmt: skip
        assert event["source"] == {"component": "vision-predictors"}
        assert event["reportingComponent"] == "vision-predictors"
        assert event["reportingInstance"] == POD
    assert pod["metadata"]["name"] != service["metadata"]["name"]


def test_a_pod_without_a_service_has_its_own_events_only(
    port: int, state: State, reporting: MakeReporter
) -> None:
    reporter = reporting(port, service="")
    reporter.report(PodEvent("Ready", "flux is ready", "flux"))
    reporter.report(PodEvent("Draining", "bye"))
    state.wait_for(lambda: state.reasons() == ["Ready", "Draining"])
    assert state.reasons("InferenceService") == []


def test_the_annotation_is_the_pods_and_leaves_its_others_alone(
    port: int, state: State, reporting: MakeReporter
) -> None:
    state.objects[POD_PATH]["metadata"]["annotations"] = {"someone": "else"}
    reporting(port).annotate("flux 3/7 512x512")
    state.wait_for(lambda: state.annotation == "flux 3/7 512x512")
    assert state.objects[POD_PATH]["metadata"]["annotations"]["someone"] == "else"


def test_a_repeated_event_is_counted_in_the_same_object(
    port: int, state: State, reporting: MakeReporter
) -> None:
    reporter = reporting(port)
    for done in range(1, 8):
        reporter.report(warming(done))
        state.wait_for(lambda done=done: [e["count"] for e in state.events] == [done, done])
    assert [event["message"] for event in state.events] == ["7 of 7", "7 of 7"]
    assert len(state.asked("POST", EVENTS)) == 2


def test_warm_up_is_written_at_most_once_per_interval(
    port: int, state: State, reporting: MakeReporter
) -> None:
    reporter = reporting(port, NEVER, service="")
    reporter.report(warming(1))
    state.wait_for(lambda: state.reasons() == ["WarmingUp"])
    for done in range(2, 8):
        reporter.report(warming(done))
        reporter.annotate(f"flux {done}/7 512x512")
    reporter.report(PodEvent("Ready", "flux is ready", "flux"))  # this one does not wait
    state.wait_for(lambda: state.reasons() == ["WarmingUp", "Ready"])
    assert (state.events[0]["count"], state.events[0]["message"]) == (7, "7 of 7")
    assert state.annotation == "flux 7/7 512x512"
    assert len(state.asked("PATCH", "/")) == 2  # one event, one annotation


def test_two_models_of_one_pod_have_an_event_each(
    port: int, state: State, reporting: MakeReporter
) -> None:
    reporter = reporting(port, service="")
    for model in ("flux", "qwen-vl"):
        reporter.report(PodEvent("Ready", f"{model} is ready", model))
    state.wait_for(lambda: len(state.events) == 2)
    assert [event["message"] for event in state.events] == ["flux is ready", "qwen-vl is ready"]


def test_an_event_that_has_expired_is_created_again(
    port: int, state: State, reporting: MakeReporter
) -> None:
    reporter = reporting(port, service="")
    reporter.report(warming(1))
    state.wait_for(lambda: state.events)
    with state.changed:
        state.objects = {path: o for path, o in state.objects.items() if "/events/" not in path}
    reporter.report(warming(2))
    state.wait_for(lambda: [event["count"] for event in state.events] == [2])


def test_a_long_message_is_cut(port: int, state: State, reporting: MakeReporter) -> None:
    reporting(port).report(PodEvent("EngineFailed", "why " * 1000, "flux"))
    state.wait_for(lambda: len(state.events) == 2)


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_a_failing_server_is_retried_with_one_line_in_the_log(
    status: int,
    port: int,
    state: State,
    reporting: MakeReporter,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporter_module, "MIN_PAUSE_S", 0.01)
    caplog.set_level(logging.INFO)
    state.statuses[f"POST {EVENTS}"] = status
    reporter = reporting(port, service="")
    reporter.report(PodEvent("Loading", "flux is loading", "flux"))
    state.wait_for(lambda: len(state.asked("POST", EVENTS)) >= 2)
    state.statuses.clear()
    reporter.report(PodEvent("Ready", "flux is ready", "flux"))
    state.wait_for(lambda: state.reasons() == ["Loading", "Ready"])
    reporter.close(PATIENCE_S)
    logged = [
        record.getMessage() for record in caplog.records if "Kubernetes" in record.getMessage()
    ]
    assert len(logged) == 2
    assert logged[0].startswith("the Kubernetes API can't be told, serving goes on without: ")
    assert logged[1] == "the Kubernetes API answers again"
    assert not [r for r in caplog.records if r.name.startswith("urllib3") and r.levelno > 20]


def test_an_event_that_was_created_without_an_answer_is_not_duplicated(
    port: int, state: State, reporting: MakeReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine may answer other calls too late as well; those are made again."""
    monkeypatch.setattr(reporter_module, "MIN_PAUSE_S", 0.01)
    state.unanswered.add(f"POST {EVENTS}")
    reporter = reporting(port, ClusterSettings(interval_s=0.0, timeout_s=0.5), service="")
    reporter.report(PodEvent("Ready", "flux is ready", "flux"))
    state.wait_for(lambda: len(state.asked("POST", EVENTS)) >= 2)
    state.unanswered.clear()
    reporter.annotate("afterwards")
    state.wait_for(lambda: state.annotation)
    assert state.reasons() == ["Ready"]
    assert len({body["metadata"]["name"] for body in state.asked("POST", EVENTS)}) == 1


def test_a_refused_write_is_logged_once_and_the_others_are_sent(
    port: int, state: State, reporting: MakeReporter, caplog: pytest.LogCaptureFixture
) -> None:
    state.statuses[f"GET {SERVICE_PATH}"] = 403
    reporter = reporting(port)
    for reason in ("Loading", "Ready", "Draining"):
        reporter.report(PodEvent(reason, "so it is", "flux"))
    state.wait_for(lambda: state.reasons() == ["Loading", "Ready", "Draining"])
    reporter.close(PATIENCE_S)
    assert state.reasons("InferenceService") == []
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [
        "the Kubernetes API refuses an event on the InferenceService, and is not told: "
        "403: as the test says"
    ]


def test_reporting_never_blocks(folder: Path) -> None:
    connecting, may_fail, has_failed = (threading.Event() for _ in range(3))

    def connect(_: PodIdentity, timeout_s: float) -> KubernetesApi:
        connecting.set()
        may_fail.wait(PATIENCE_S)
        has_failed.set()
        raise ApiUnavailable("at last")

    reporter = EventReporter(identity(folder, 1), BRISK, connect=connect)
    reporter.start()
    reporter.report(warming(0))
    assert connecting.wait(PATIENCE_S)
    for done in range(1000):
        reporter.report(warming(done))
        reporter.annotate(str(done))
    reporter.close()
    assert is_running()
    assert not has_failed.is_set(), "a call waited for the connection"
    may_fail.set()
    reporter.close(PATIENCE_S)
    assert not is_running()


def test_a_dead_server_is_one_line_in_the_log(
    dead_port: int, reporting: MakeReporter, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = reporting(dead_port)
    reporter.report(warming(1))
    reporter.annotate("1/7")
    reporter.close(PATIENCE_S)
    logged = [r.getMessage() for r in caplog.records]
    assert len(logged) == 1, logged
    assert "refused" in logged[0]


def test_close_does_not_wait_for_a_server_that_does_not_answer(reporting: MakeReporter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        patient = ClusterSettings(interval_s=0.0, timeout_s=3600.0)
        reporter = reporting(listener.getsockname()[1], patient)
        reporter.report(PodEvent("Ready", "flux is ready", "flux"))
        with listener.accept()[0]:  # and never answer
            reporter.close()
            assert is_running()


def test_events_of_an_outage_are_sent_when_the_server_is_back(
    dead_port: int, folder: Path, state: State, reporting: MakeReporter
) -> None:
    reporter = reporting(dead_port)
    reporter.report(PodEvent("Loading", "flux is loading", "flux"))
    for done in range(1, 4):
        reporter.report(warming(done))
    reporter.report(PodEvent("Ready", "flux is ready", "flux"))
    reporter.annotate("ready")
    with api_server(folder, state, dead_port):
        state.wait_for(lambda: state.annotation == "ready")
    for kind in ("Pod", "InferenceService"):
        events = state.events_about(kind)
        assert [e["reason"] for e in events] == ["Loading", "WarmingUp", "Ready"]
        assert [e["count"] for e in events] == [1, 3, 1]


def test_close_sends_the_remaining_writes(port: int, state: State, reporting: MakeReporter) -> None:
    reporter = reporting(port, NEVER)
    reporter.report(warming(1))
    state.wait_for(lambda: len(state.events) == 2)
    reporter.report(warming(2))
    reporter.report(PodEvent("Draining", "finishing 2 requests for at most 30 s"))
    reporter.close(PATIENCE_S)
    assert state.reasons() == ["WarmingUp", "Draining"]
    assert state.events[0]["count"] == 2


def test_a_token_that_was_renewed_on_disk_is_used(
    port: int, state: State, folder: Path, reporting: MakeReporter
) -> None:
    (folder / "token").write_text("yesterday's")
    reporter = reporting(port, service="")
    reporter.annotate("first")
    state.wait_for(lambda: state.asked("PATCH", POD_PATH))
    (folder / "token").write_text("a-token")
    reporter.report(PodEvent("Loading", "flux is loading", "flux"))
    state.wait_for(lambda: state.annotation == "first")


def test_a_server_with_another_ca_is_not_trusted(
    port: int, state: State, folder: Path, tmp_path: Path, reporting: MakeReporter
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    foreign = certificate(elsewhere)
    (folder / "ca.crt").write_bytes(foreign.read_bytes())
    reporter = reporting(port)
    reporter.annotate("text")
    reporter.close(PATIENCE_S)
    assert state.requests == []


def test_only_one_thread_is_added_and_it_ends(port: int, reporting: MakeReporter) -> None:
    before = threading.active_count()
    reporter = reporting(port)
    reporter.close(PATIENCE_S)
    assert threading.active_count() <= before + 1
    assert not is_running()
