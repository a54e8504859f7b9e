"""The sentences that Kubernetes is told, and the annotation of one model and of two."""

from __future__ import annotations

from typing import cast

from predictors.cluster.events import Notice
from predictors.cluster.reporter import Reporter
from predictors.cluster.story import Story


class Listener:
    """Takes what a reporter would."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.annotations: list[str] = []

    def tell(self, notice: Notice) -> None:
        """An event."""
        self.notices.append(notice)

    def annotate(self, text: str) -> None:
        """An annotation."""
        self.annotations.append(text)


def story_of(*models: str) -> tuple[Story, Listener]:
    """A story whose clock goes one second per look."""
    listener = Listener()
    seconds = iter(range(100))
    return Story(models, cast(Reporter, listener), lambda: float(next(seconds))), listener


def test_a_start_is_told_from_load_to_ready() -> None:
    story, heard = story_of("flux")
    story.loading("flux")
    story.warming("flux")
    story.warmed("flux", "512x512", 1, 2)
    story.warmed("flux", "1024x1024", 2, 2)
    story.ready("flux")
    assert [(notice.reason, notice.message, notice.can_wait) for notice in heard.notices] == [
        ("Loading", "flux is loading", False),
        ("WarmingUp", "flux is loaded and warming up, after 1.0 s", True),
        ("WarmingUp", "flux is warm for 512x512 (1 of 2)", True),
        ("WarmingUp", "flux is warm for 1024x1024 (2 of 2)", True),
        ("Ready", "flux is ready, after 2.0 s", False),
    ]
    assert {notice.subject for notice in heard.notices} == {"flux"}
    assert not any(notice.is_warning for notice in heard.notices)
    assert heard.annotations == [
        "flux loading", "flux warming up", "flux 1/2 512x512", "flux 2/2 1024x1024", "ready",
    ]  # fmt: skip


def test_two_models_share_one_annotation_that_is_ready_when_both_are() -> None:
    story, heard = story_of("flux", "qwen-vl")
    story.loading("flux")
    story.warmed("qwen-vl", "decode 8", 3, 9)
    story.ready("flux")
    story.ready("qwen-vl")
    assert heard.annotations == [
        "flux loading; qwen-vl waiting",
        "flux loading; qwen-vl 3/9 decode 8",
        "flux ready; qwen-vl 3/9 decode 8",
        "ready",
    ]


def test_a_failure_is_a_warning_and_stays_in_the_annotation() -> None:
    story, heard = story_of("flux")
    story.failed("flux", "flux failed while ready; the server's log says why")
    assert [(n.reason, n.is_warning) for n in heard.notices] == [("EngineFailed", True)]
    assert heard.annotations == ["flux failed"]


def test_draining_is_told_once_for_the_pod() -> None:
    story, heard = story_of("flux", "qwen-vl")
    story.draining(3, 280.0)
    assert [(n.reason, n.subject, n.message) for n in heard.notices] == [
        ("Draining", "", "finishing 3 requests for at most 280 s")
    ]
    assert heard.annotations == []


def test_a_model_that_becomes_ready_while_the_process_ends_is_not_told_but_a_failure_is() -> None:
    story, heard = story_of("flux")
    story.draining(0, 280.0)
    story.warmed("flux", "512x512", 1, 1)
    story.ready("flux")
    story.failed("flux", "flux failed while draining")
    assert [n.reason for n in heard.notices] == ["Draining", "EngineFailed"]
    assert heard.annotations == ["flux failed"]


def test_without_a_reporter_a_story_is_told_to_nobody() -> None:
    story = Story(["flux"], None)
    story.loading("flux")
    story.ready("flux")
    story.draining(0, 1.0)
