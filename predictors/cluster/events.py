"""Kubernetes Events as the API takes them: one about each thing that happened, counted up when it
happens again. Knows the fields of core/v1 Event; neither a connection nor what is told.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, replace
from typing import Any

COMPONENT = "vision-predictors"
MAX_MESSAGE = 1024  # characters that Kubernetes takes


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened `count` times, from `first` to `last` (Unix seconds)."""

    reason: str
    message: str
    subject: str = ""
    """What it is about within the pod, a model: equal reason and subject are one event."""
    is_warning: bool = False
    can_wait: bool = False
    """Whether it may be held back a little, to be told together with the next of its kind."""
    count: int = 1
    first: float = 0.0
    last: float = 0.0

    def after(self, earlier: Notice) -> Notice:
        """Both in one: the earlier one's beginning, this one's words."""
        return replace(self, count=earlier.count + self.count, first=earlier.first)


def event_name(about: str) -> str:
    """A name that no other event has, for one about an object of this name."""
    return f"{about[:200]}.{uuid.uuid4().hex[:16]}"


def new_event(name: str, notice: Notice, about: dict[str, str], pod: str) -> dict[str, Any]:
    """The first event of its kind `about` an object (an ObjectReference) as `pod` tells it."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about["namespace"]},
        "involvedObject": about,
        "reason": notice.reason,
        "type": "Warning" if notice.is_warning else "Normal",
        "firstTimestamp": timestamp(notice.first),
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": pod,
        **repetition(notice),
    }


def repetition(notice: Notice) -> dict[str, Any]:
    """What changes in an event that is there already."""
    return {
        "message": notice.message[:MAX_MESSAGE],
        "count": notice.count,
        "lastTimestamp": timestamp(notice.last),
    }


def reference(found: dict[str, Any], api_version: str, kind: str) -> dict[str, str]:
    """Points to an object that the API server has shown; `kubectl describe` looks for its uid."""
    about = found["metadata"]
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": about["name"],
        "namespace": about["namespace"],
        "uid": about["uid"],
    }


def timestamp(seconds: float) -> str:
    """Unix seconds as RFC 3339, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
