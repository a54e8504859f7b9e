"""What is still to be told, in order, within bounds: equal things become one, what may wait does.
Knows times and keys; no API and no thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from predictors.cluster.events import Notice

CAPACITY = 64

Key = tuple[str, str, str]
"""Target, reason and subject of an errand."""


@dataclass(frozen=True, slots=True)
class Errand:
    """One call to make: an event about `target` or, without a notice, the pod's annotation."""

    target: str
    text: str = ""
    notice: Notice | None = None

    @property
    def key(self) -> Key:
        """Errands with equal keys are one."""
        if self.notice is None:
            return (self.target, "", "")
        return (self.target, self.notice.reason, self.notice.subject)

    @property
    def can_wait(self) -> bool:
        """Whether it may be held back, to be made together with what comes next."""
        return self.notice is None or self.notice.can_wait

    def after(self, earlier: Errand) -> Errand:
        """Both in one."""
        if self.notice is None or earlier.notice is None:
            return self
        return Errand(self.target, self.text, self.notice.after(earlier.notice))


class Pending:
    """Errands not made yet, the oldest first. For one thread at a time."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._errands: dict[Key, Errand] = {}
        self._capacity = capacity

    def __bool__(self) -> bool:
        return bool(self._errands)

    @property
    def can_wait(self) -> bool:
        """Whether nothing among them is urgent."""
        return all(errand.can_wait for errand in self._errands.values())

    def add(self, errand: Errand) -> None:
        """Take one more; when that is too many, the oldest is lost."""
        earlier = self._errands.get(errand.key)
        self._errands[errand.key] = errand if earlier is None else errand.after(earlier)
        if len(self._errands) > self._capacity:
            del self._errands[next(iter(self._errands))]

    def take(self) -> list[Errand]:
        """All of them; none are left."""
        taken, self._errands = list(self._errands.values()), {}
        return taken

    def put_back(self, errands: list[Errand]) -> None:
        """Those that could not be made go before whatever has come since."""
        later, self._errands = self._errands, {}
        for errand in [*errands, *later.values()]:
            self.add(errand)
