"""Kubernetes Events (core/v1) as JSON objects for the API server. Repeated events are one object
with a count.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, replace
from typing import Any

COMPONENT = "vision-predictors"
MAX_MESSAGE = 1024  # characters that Kubernetes accepts


@dataclass(frozen=True, slots=True)
class PodEvent:
    """An event that happened `count` times, from `first` to `last` (Unix seconds)."""

    reason: str
    message: str
    subject: str = ""
    """The model that it is about, or empty. Events of equal reason and subject are merged."""
    is_warning: bool = False
    is_deferrable: bool = False
    """True if it may be held back and merged with the next event of its kind."""
    count: int = 1
    first: float = 0.0
    last: float = 0.0

    def merged_with(self, earlier: PodEvent) -> PodEvent:
        """Both as one event: the earlier one's first time, this one's message."""
        return replace(self, count=earlier.count + self.count, first=earlier.first)


def unique_event_name(target: str) -> str:
    return f"{target[:200]}.{uuid.uuid4().hex[:16]}"


def new_event(name: str, event: PodEvent, target: dict[str, str], pod: str) -> dict[str, Any]:
    """The Event object for `event`, about the ObjectReference `target`, reported by `pod`."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": target["namespace"]},
        "involvedObject": target,
        "reason": event.reason,
        "type": "Warning" if event.is_warning else "Normal",
        "firstTimestamp": timestamp(event.first),
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": pod,
        **event_update(event),
    }


def event_update(event: PodEvent) -> dict[str, Any]:
    """The fields of an existing Event object that change when the event is repeated."""
    return {
        "message": event.message[:MAX_MESSAGE],
        "count": event.count,
        "lastTimestamp": timestamp(event.last),
    }


def object_reference(found: dict[str, Any], api_version: str, kind: str) -> dict[str, str]:
    """The ObjectReference of an object from the API; `kubectl describe` finds events by its uid."""
    metadata = found["metadata"]
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "uid": metadata["uid"],
    }


def timestamp(seconds: float) -> str:
    """Unix seconds as RFC 3339, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
