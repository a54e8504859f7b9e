"""Log lines that come in floods: some are written, and all are accounted for."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.observe.sampling import LINES, WINDOW_S, SampledLines

log = logging.getLogger("tests.sampled")


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_the_first_lines_of_a_window_are_written_and_the_next_window_says_how_many_were_not() -> (
    None
):
    clock = Clock()
    lines = SampledLines(log, clock)
    assert [lines.admit("a") for _ in range(LINES + 3)] == [0] * LINES + [None] * 3
    assert lines.admit("b") == 0
    clock.now += WINDOW_S
    assert [lines.admit("a"), lines.admit("a")] == [3, 0]


@given(st.lists(st.floats(0.0, 3.0), max_size=200))
def test_every_line_is_written_or_counted(pauses: list[float]) -> None:
    clock = Clock()
    lines, accounted = SampledLines(log, clock), 0
    for pause in pauses:
        clock.now += pause
        found = lines.admit("a")
        accounted += 0 if found is None else 1 + found
    clock.now += WINDOW_S
    found = lines.admit("a")
    assert found is not None
    assert accounted + found == len(pauses)


def test_the_end_of_a_flood_is_reported_in_a_line_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reported = asyncio.Event()

    class Waking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reported.set()

    async def flood() -> None:
        lines = SampledLines(log)
        for _ in range(LINES + 7):
            lines.admit("queue_full")
        await reported.wait()  # a timer of the loop writes it

    waking = Waking()
    log.addHandler(waking)
    with caplog.at_level(logging.INFO, logger=log.name):
        asyncio.run(asyncio.wait_for(flood(), 60))
    log.removeHandler(waking)
    (record,) = caplog.records
    assert vars(record)["left_out"] == 7
    assert record.getMessage() == "7 refusals were left out here: queue_full"
