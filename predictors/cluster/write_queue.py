"""A bounded queue of writes to the Kubernetes API, oldest first. Writes of equal keys are merged,
so that a queue that can't be sent does not grow.
"""

from __future__ import annotations

from dataclasses import dataclass

from predictors.cluster.events import PodEvent

CAPACITY = 64

WriteKey = tuple[str, str, str]
"""Target, reason and subject of a write."""


@dataclass(frozen=True, slots=True)
class ApiWrite:
    """A call to make: an event about `target`, or without an event the pod's annotation."""

    target: str
    text: str = ""
    event: PodEvent | None = None

    @property
    def key(self) -> WriteKey:
        if self.event is None:
            return (self.target, "", "")
        return (self.target, self.event.reason, self.event.subject)

    @property
    def is_deferrable(self) -> bool:
        return self.event is None or self.event.is_deferrable

    def merged_with(self, earlier: ApiWrite) -> ApiWrite:
        if self.event is None or earlier.event is None:
            return self
        return ApiWrite(self.target, self.text, self.event.merged_with(earlier.event))


class WriteQueue:
    """Writes that have not been sent. Not thread-safe."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._writes: dict[WriteKey, ApiWrite] = {}
        self._capacity = capacity

    def __bool__(self) -> bool:
        return bool(self._writes)

    @property
    def is_deferrable(self) -> bool:
        return all(write.is_deferrable for write in self._writes.values())

    def add(self, write: ApiWrite) -> None:
        """Append or merge a write. If the queue is full the oldest one is dropped."""
        earlier = self._writes.get(write.key)
        self._writes[write.key] = write if earlier is None else write.merged_with(earlier)
        if len(self._writes) > self._capacity:
            del self._writes[next(iter(self._writes))]

    def pop_all(self) -> list[ApiWrite]:
        writes, self._writes = list(self._writes.values()), {}
        return writes

    def put_back(self, writes: list[ApiWrite]) -> None:
        """Insert writes that failed before those that were added since."""
        later, self._writes = self._writes, {}
        for write in [*writes, *later.values()]:
            self.add(write)
