"""A version that cannot start harms no caller: its pod stays beside the old one, which goes on
answering, until an operator rolls back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.helm import Release
from tests.e2e.image.places import BROKEN
from tests.e2e.kube import Kube, condition, name_of, restarts_of, until
from tests.e2e.one_model import MODEL, drawing, installed, values, waiting_reason

MISSING = "localhost/vision-predictors:no-such-version"


def spoiled(kube: Kube, old: str) -> str:
    """Why the new pod does not run; empty as long as that is not plain."""
    for pod in kube.pods(MODEL):
        reason = waiting_reason(pod)
        is_hopeless = reason == "ErrImageNeverPull" or restarts_of(pod) >= 1
        if name_of(pod) != old and is_hopeless:
            return reason or "restarted"
    return ""


@pytest.fixture(scope="module")
def release(kube: Kube) -> Iterator[Release]:
    """One model, served by a sound version."""
    with installed(kube, values()) as release:
        kube.wait_served(MODEL)
        yield release


@pytest.mark.parametrize("image", [BROKEN, MISSING])
def test_a_broken_version_fails_no_request_and_a_rollback_ends_it(
    kube: Kube, release: Release, kept: Path, image: str
) -> None:
    (old,) = kube.ready_pods(MODEL, 1)
    sound = release.history()[-1]["revision"]
    with drawing(kube, kept, f"broken-{image.rpartition(':')[2]}") as traffic:
        traffic.wait_answered(5)
        with traffic.around(f"a rollout of {image}") as window:
            release.upgrade([], values(image=image))
            until("the new pod fails", lambda: spoiled(kube, name_of(old)), 60)
            traffic.wait_answered(10)
            assert condition(kube.get("pod", name_of(old)), "Ready") == "True"
            release.rollback(sound)
            until("the broken pod is gone", lambda: len(kube.list("pods")) == 1, 60)
        window.assert_none_failed()
        print(window)
    (left,) = kube.ready_pods(MODEL, 1)
    assert name_of(left) == name_of(old), "the old pod never went"
    assert [(each["revision"], each["status"]) for each in release.history()[-3:]] == [
        (sound, "superseded"),
        (sound + 1, "superseded"),
        (sound + 2, "deployed"),
    ]
