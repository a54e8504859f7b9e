"""The places of the waiting queue, and how callers share them.

A caller that is alone may take all places. Beside others it may hold half of them while any are
left, and its equal part even if none is. Places that a caller took beyond its half, while it was
alone, do not count against the others. No accepted job is dropped, so up to one and a half times
the capacity may wait.
"""

from __future__ import annotations

from predictors.serving.accounts import Account


class Places:
    """Counts the rows that wait or are being prepared, by caller (`Account.places`). Not
    thread-safe: `JobTable` holds the lock."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.half = (capacity + 1) // 2
        """Most places of one caller while others wait."""
        self.taken = 0
        self._holders = 0  # callers that hold a place
        self._excess = 0  # places that callers hold beyond their halves

    def add(self, account: Account, rows: int) -> None:
        """Count `rows` more places of a caller; fewer if `rows` is negative."""
        before = account.places
        after = account.places = before + rows
        self.taken += rows
        if not (before and after):
            self._holders += (after > 0) - (before > 0)
        half = self.half
        self._excess += (after - half if after > half else 0) - (
            before - half if before > half else 0
        )

    def free(self, own: int, free_slots: int) -> int:
        """Rows that a caller with `own` places may add; negative if it holds too many. Free slots
        count as places."""
        if own == self.taken:
            return self.capacity + free_slots - own
        others = self.taken - own - (self._excess - max(0, own - self.half))
        of_all = self.capacity + free_slots - own - others
        of_half = self.half + free_slots - own
        of_equal_part = self.capacity // self.callers_with(own) - own
        most = self.capacity + self.half + free_slots - self.taken
        return min(max(min(of_all, of_half), of_equal_part), most)

    def callers_with(self, own: int) -> int:
        """Number of callers with places, the asking one included; it holds `own`."""
        return self._holders + (own == 0)

    def refusal(self, own: int, rows: int, free_slots: int) -> str:
        """The message for rows that find no places."""
        half, places = self.half + free_slots, self.capacity + free_slots
        if own != self.taken and own + rows > half and self.taken + rows <= places + self.half:
            return (
                f"this caller has {own} of the {half} places that one may take while others wait, "
                f"{rows} needed; try again later"
            )
        # when the engine refuses jobs that were to take free slots, more wait than have places
        taken = f"{self.taken} of {max(self.taken, places)} places are taken"
        return f"the queue is full: {taken}, {rows} needed; try again later"
