"""The messages of the events, and the annotation of one model and of two."""

from __future__ import annotations

from typing import cast

from predictors.cluster.events import PodEvent
from predictors.cluster.lifecycle_events import LifecycleEvents
from predictors.cluster.reporter import EventReporter


class RecordingReporter:
    def __init__(self) -> None:
        self.events: list[PodEvent] = []
        self.annotations: list[str] = []

    def report(self, event: PodEvent) -> None:
        self.events.append(event)

    def annotate(self, text: str) -> None:
        self.annotations.append(text)


def lifecycle_of(*models: str) -> tuple[LifecycleEvents, RecordingReporter]:
    """Lifecycle events with a clock that advances by one second per call, and their reporter."""
    reporter = RecordingReporter()
    seconds = iter(range(100))
    return LifecycleEvents(
        models, cast(EventReporter, reporter), lambda: float(next(seconds))
    ), reporter


def test_a_start_is_reported_from_load_to_ready() -> None:
    lifecycle, reported = lifecycle_of("flux")
    lifecycle.loading("flux")
    lifecycle.warming("flux")
    lifecycle.warmed("flux", "512x512", 1, 2)
    lifecycle.warmed("flux", "1024x1024", 2, 2)
    lifecycle.ready("flux")
    assert [(event.reason, event.message, event.is_deferrable) for event in reported.events] == [
        ("Loading", "flux is loading", False),
        ("WarmingUp", "flux is loaded and warming up, after 1.0 s", True),
        ("WarmingUp", "flux is warm for 512x512 (1 of 2)", True),
        ("WarmingUp", "flux is warm for 1024x1024 (2 of 2)", True),
        ("Ready", "flux is ready, after 2.0 s", False),
    ]
    assert {event.subject for event in reported.events} == {"flux"}
    assert not any(event.is_warning for event in reported.events)
    assert reported.annotations == [
        "flux loading", "flux warming up", "flux 1/2 512x512", "flux 2/2 1024x1024", "ready",
    ]  # fmt: skip


def test_two_models_share_one_annotation_that_is_ready_when_both_are() -> None:
    lifecycle, reported = lifecycle_of("flux", "qwen-vl")
    lifecycle.loading("flux")
    lifecycle.warmed("qwen-vl", "decode 8", 3, 9)
    lifecycle.ready("flux")
    lifecycle.ready("qwen-vl")
    assert reported.annotations == [
        "flux loading; qwen-vl waiting",
        "flux loading; qwen-vl 3/9 decode 8",
        "flux ready; qwen-vl 3/9 decode 8",
        "ready",
    ]


def test_shapes_after_ready_are_shown_until_the_last() -> None:
    lifecycle, reported = lifecycle_of("flux")
    lifecycle.warmed("flux", "512x512 base x1", 1, 3)
    lifecycle.ready("flux")
    lifecycle.warmed("flux", "768x768 base x1", 2, 3, is_ready=True)
    lifecycle.warmed("flux", "512x512 base x2", 3, 3, is_ready=True)
    assert reported.annotations == [
        "flux 1/3 512x512 base x1", "ready", "flux 2/3 768x768 base x1", "ready",
    ]  # fmt: skip
    assert reported.events[-1].message == "flux is warm for 512x512 base x2 (3 of 3)"


def test_a_failure_is_a_warning_and_stays_in_the_annotation() -> None:
    lifecycle, reported = lifecycle_of("flux")
    lifecycle.failed("flux", "flux failed while ready; the server's log says why")
    assert [(n.reason, n.is_warning) for n in reported.events] == [("EngineFailed", True)]
    assert reported.annotations == ["flux failed"]


def test_draining_is_reported_once_for_the_pod() -> None:
    lifecycle, reported = lifecycle_of("flux", "qwen-vl")
    lifecycle.draining(3, 280.0)
    assert [(n.reason, n.subject, n.message) for n in reported.events] == [
        ("Draining", "", "finishing 3 requests for at most 280 s")
    ]
    assert reported.annotations == []


def test_after_draining_only_a_failure_is_reported() -> None:
    lifecycle, reported = lifecycle_of("flux")
    lifecycle.draining(0, 280.0)
    lifecycle.warmed("flux", "512x512", 1, 1)
    lifecycle.ready("flux")
    lifecycle.failed("flux", "flux failed while draining")
    assert [n.reason for n in reported.events] == ["Draining", "EngineFailed"]
    assert reported.annotations == ["flux failed"]


def test_without_a_reporter_nothing_is_reported() -> None:
    lifecycle = LifecycleEvents(["flux"], None)
    lifecycle.loading("flux")
    lifecycle.ready("flux")
    lifecycle.draining(0, 1.0)
