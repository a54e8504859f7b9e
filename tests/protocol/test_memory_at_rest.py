"""The memory of a server at rest beside the limit from which requests are refused."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from predictors.observe.memory_use import MemoryUse
from predictors.protocol import memory_at_rest
from predictors.protocol.memory_at_rest import MIB, MemoryAtRest
from predictors.settings import OverloadSettings

Make = Callable[..., tuple[MemoryAtRest, list[int]]]


class Model:
    """A model that is warm or not."""

    def __init__(self, *, is_warm: bool = True) -> None:
        self.is_warm = is_warm

    async def healthy(self) -> bool:
        return self.is_warm


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes one with a limit of 1000 MiB, and the uses that it reads one after the other."""

    def made(
        *uses: int, limit: int = 1000, refuse_at: float = 0.97
    ) -> tuple[MemoryAtRest, list[int]]:
        left = [each * MIB for each in uses]
        use = MemoryUse(lambda: left.pop(0), limit * MIB)
        monkeypatch.setattr(memory_at_rest, "find_memory_use", lambda limit: use)
        return MemoryAtRest(OverloadSettings(refuse_at=refuse_at)), left

    return made


async def test_a_server_that_fits_is_asked_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    found, left = make(800, 980)
    assert not found.is_known
    assert await found.fits([Model()])
    assert await found.fits([Model()])  # what requests take later is the gate's
    assert found.is_known
    assert left == [980 * MIB]
    assert caplog.text == ""


async def test_one_that_fills_its_limit_says_both_numbers_once_until_it_fits(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    found, _ = make(3100, 970, 969)
    assert not await found.fits([Model()])
    assert "uses 3100 MiB at rest, and refuses requests from 0.97 of its limit of 1000 MiB" in (
        found.fault
    )
    assert "MEMORY_BYTES above 3551 MiB" in found.fault
    assert not await found.fits([Model()])
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]
    assert await found.fits([Model()])
    assert found.fault == ""
    assert "ready: the server uses 969 MiB at rest now" in caplog.text


async def test_it_is_compared_when_all_models_are_warm(make: Make) -> None:
    found, left = make(3100)
    late = Model(is_warm=False)
    assert await found.fits([Model(), late])
    assert left
    late.is_warm = True
    assert not await found.fits([Model(), late])


async def test_a_refusal_that_would_not_end_is_warned_of(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    found, _ = make(880)
    assert await found.fits([Model()])
    assert "from 970 MiB, it begins again only below 873 MiB" in caplog.text


@pytest.mark.parametrize("off", [{"limit": 0}, {"refuse_at": 0.0}])
async def test_without_a_bound_nothing_is_compared(make: Make, off: dict[str, int]) -> None:
    found, left = make(3100, **off)
    assert found.is_known
    assert await found.fits([Model()])
    assert left
