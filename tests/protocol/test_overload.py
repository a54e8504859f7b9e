"""The overload gate with monitors and a clock that the test sets."""

from __future__ import annotations

import logging
import math
import mmap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from predictors import metrics
from predictors.errors import ServerOverloaded
from predictors.observe.memory_use import find_memory_use
from predictors.protocol.http.connection_limits import ConnectionLimit
from predictors.protocol.monitors import INTERVAL_S, LoopLag, every, make_monitors
from predictors.protocol.overload import CLOSE, REFUSE, REFUSE_LARGE, Monitor, OverloadGate
from predictors.protocol.registry import Registry
from predictors.settings import OverloadSettings, ServerSettings, Settings

SMALL, LARGE, UNKNOWN = {"content-length": "65536"}, {"content-length": "65537"}, "chunked"
ALL = {CLOSE, REFUSE_LARGE, REFUSE}


class Gate:
    """A gate with one monitor, whose pressure the test sets."""

    def __init__(self, actions: set[str] = ALL, **settings: float) -> None:
        self.pressure = 0.0
        self.gate = OverloadGate(OverloadSettings(**settings))  # type: ignore[arg-type]
        self.gate.watch(Monitor("memory", lambda: self.pressure, actions))

    def at(self, pressure: float) -> tuple[bool, bool, bool]:
        """The actions at this pressure: connections close, large requests, all are refused."""
        self.pressure = pressure
        self.gate.update()
        return self.gate.closes, refused(self.gate, LARGE), refused(self.gate, SMALL)


def refused(gate: OverloadGate, headers: dict[str, str]) -> bool:
    try:
        gate.check(headers)
    except ServerOverloaded:
        return True
    return False


def shown(series: Any, label: str) -> float:
    return float(series.labels(label)._value.get())


def test_connections_close_first_and_requests_are_refused_later() -> None:
    gate = Gate({CLOSE, REFUSE}, close_at=0.8, refuse_at=0.9)
    assert gate.at(0.79) == (False, False, False)
    assert gate.at(0.80) == (True, False, False)
    assert gate.at(0.90) == (True, True, True)
    assert gate.at(5.0) == (True, True, True)


def test_an_action_ends_well_below_the_pressure_that_began_it() -> None:
    gate = Gate({CLOSE, REFUSE}, close_at=0.8, refuse_at=0.9)
    gate.at(0.95)
    assert gate.at(0.85) == (True, True, True)
    assert gate.at(0.811) == (True, True, True)
    assert gate.at(0.809) == (True, False, False)
    assert gate.at(0.721) == (True, False, False)
    assert gate.at(0.719) == (False, False, False)


def test_a_pressure_that_swings_around_the_mark_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate({CLOSE, REFUSE}, close_at=0.8, refuse_at=0.9)
    with caplog.at_level(logging.INFO):
        found = {gate.at(0.9 + 0.05 * (-1) ** i) for i in range(50)} | {gate.at(0.95)}
    assert found == {(True, True, True)}
    assert len(caplog.records) == 2  # each action began once


def test_bodies_refuse_large_requests_only() -> None:
    gate = Gate({CLOSE, REFUSE_LARGE})
    assert gate.at(1.0) == (True, True, False)
    assert refused(gate.gate, {"transfer-encoding": UNKNOWN})
    assert not refused(gate.gate, {})


@pytest.mark.parametrize("pressure", [0.0, 0.96, 1.0, 1e9])
def test_zero_turns_an_action_off(pressure: float) -> None:
    assert Gate(close_at=0.0, refuse_at=0.0).at(pressure) == (False, False, False)


def test_a_refusal_says_why_and_when_to_come_back() -> None:
    gate = Gate()
    gate.at(1.0)
    with pytest.raises(ServerOverloaded) as failure:
        gate.gate.check_size(10)
    assert failure.value.message == "the server is overloaded (memory); try again later"
    assert failure.value.reason == "overloaded"
    assert failure.value.retry_after_s >= 1


def test_series_show_pressure_and_actions() -> None:
    gate = Gate({CLOSE, REFUSE})
    gate.at(3.0)
    assert shown(metrics.overload_pressure, "memory") == 1.0
    assert [shown(metrics.overload_active, action) for action in (CLOSE, REFUSE_LARGE, REFUSE)] == [
        1,
        0,
        1,
    ]
    gate.at(0.25)
    assert shown(metrics.overload_pressure, "memory") == 0.25
    assert shown(metrics.overload_active, CLOSE) == 0


def test_the_highest_monitor_of_an_action_decides() -> None:
    gate = OverloadGate(OverloadSettings())
    gate.watch(
        Monitor("connections", lambda: 1.0, {CLOSE}),
        Monitor("memory", lambda: 0.5, {CLOSE, REFUSE}),
    )
    gate.update()
    assert gate.closes
    assert not gate.is_refusing


# -- the loop's lag --------------------------------------------------------------------------------
class Loop:
    """A loop whose timer the test fires, late by as much as it says."""

    def __init__(self, limit_s: float) -> None:
        self.now = 100.0
        self.ticks = 0
        self.lag = LoopLag(limit_s, self.count, lambda: self.now)

    def count(self) -> None:
        self.ticks += 1

    def fire(self, *, late_s: float = 0.0, times: int = 1) -> float:
        for _ in range(times):
            self.now += INTERVAL_S + late_s
            self.lag.tick()
        return self.lag.pressure()


def test_a_loop_in_time_has_no_pressure() -> None:
    loop = Loop(0.5)
    assert loop.fire(times=100) == pytest.approx(0.0, abs=1e-9)
    assert loop.ticks == 100


def test_a_loop_that_stays_late_comes_to_its_share() -> None:
    assert Loop(0.5).fire(late_s=0.25, times=60) == pytest.approx(0.5, abs=0.01)
    assert Loop(0.5).fire(late_s=0.6, times=60) > 0.97


@pytest.mark.parametrize("pause_s", [1.0, 10.0, 3600.0])
def test_one_long_pause_refuses_nobody(pause_s: float) -> None:
    """A process that was stopped, a collection of garbage: the next requests are served."""
    assert Loop(0.5).fire(late_s=pause_s) < OverloadSettings().close_at


def test_the_pressure_is_gone_soon_after_the_last_delay() -> None:
    loop = Loop(0.5)
    loop.fire(late_s=5.0, times=50)
    assert loop.fire(times=10) < 0.25


def test_the_whole_lag_is_in_the_histogram_however_little_counts() -> None:
    def seen() -> tuple[float, ...]:
        name = "predictors_event_loop_lag_seconds"
        return tuple(
            REGISTRY.get_sample_value(f"{name}_{kind}") or 0.0 for kind in ("count", "sum")
        )

    count, total = seen()
    Loop(0.5).fire(late_s=30.0, times=2)
    found = seen()  # servers of other tests in this process observe theirs, too
    assert found[0] >= count + 2
    assert found[1] >= total + 60.0


def test_another_thread_sees_how_long_the_loop_has_not_run() -> None:
    loop = Loop(0.5)
    loop.fire()
    assert loop.lag.overdue_s() == 0.0
    loop.now += 30.0
    assert loop.lag.overdue_s() == pytest.approx(30.0 - INTERVAL_S)


# -- the other monitors ----------------------------------------------------------------------------
def pressures(settings: Settings, **registry: Any) -> dict[str, Callable[[], float]]:
    found = SimpleNamespace(
        settings=settings,
        overload=OverloadGate(settings.overload),
        backlog=registry.get("backlog", 0),
        bytes_in_flight=SimpleNamespace(pressure=lambda: 0.0),
    )
    monitors = make_monitors(cast(Registry, found), ConnectionLimit(10), Loop(1.0).lag)
    assert {monitor.name for monitor in monitors} <= set(metrics.OVERLOAD_MONITORS)
    return {monitor.name: monitor.pressure for monitor in monitors}


class Idle:
    """A connection without a request."""

    def abort(self) -> None: ...


def test_idle_connections_count_to_close_and_only_busy_ones_to_refuse() -> None:
    limit = ConnectionLimit(10)
    registry = SimpleNamespace(
        settings=Settings(),
        overload=OverloadGate(OverloadSettings()),
        backlog=0,
        bytes_in_flight=SimpleNamespace(pressure=lambda: 0.0),
    )
    monitors = make_monitors(cast(Registry, registry), limit, Loop(1.0).lag)
    by_name = {monitor.name: monitor for monitor in monitors}
    for _ in range(9):
        limit.add(Idle())
    assert by_name["connections"].pressure() == 0.9
    assert by_name["connections"].actions == {CLOSE}
    assert by_name["busy_connections"].pressure() == 0.0


def test_the_backlog_is_a_share_of_its_setting() -> None:
    settings = Settings(overload=OverloadSettings(prepare_backlog=200))
    assert pressures(settings, backlog=50)["backlog"]() == 0.25


def test_what_has_no_limit_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    from predictors.observe.memory_use import MemoryUse
    from predictors.protocol import memory_at_rest

    def found(limit: int) -> MemoryUse:
        return MemoryUse(lambda: 1, limit)

    monkeypatch.setattr(memory_at_rest, "find_memory_use", found)
    off = OverloadSettings(loop_lag_s=0.0, prepare_backlog=0)
    assert set(pressures(Settings(overload=off))) == {"connections", "busy_connections", "bodies"}
    on = OverloadSettings(memory_bytes=4)
    assert pressures(Settings(overload=on))["memory"]() == 0.25


def test_a_costly_reading_is_taken_now_and_then() -> None:
    taken: list[int] = []
    read = every(3, lambda: taken.append(1) or len(taken))  # type: ignore[func-returns-value]
    assert [read() for _ in range(7)] == [1, 1, 1, 2, 2, 2, 3]


# -- memory ----------------------------------------------------------------------------------------
def group(folder: Path, version: int, limit: str) -> Path:
    """A control group that uses 100 bytes, 60 of them files that can be dropped."""
    names = ("memory.max", "memory.current") if version == 2 else (
        "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"
    )  # fmt: skip
    stat = names[0].rpartition("/")[0]
    (folder / stat).mkdir(exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text("100\n")
    prefix = "" if version == 2 else "total_"
    lines = f"{prefix}inactive_file 40\n{prefix}active_file 20\nanon 5\n"
    (folder / stat / "memory.stat").write_text(lines)
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_the_containers_limit_and_use_are_found(version: int, tmp_path: Path) -> None:
    found = find_memory_use(0, group(tmp_path, version, "1000"), tmp_path / "none")
    assert (found.limit, found.read()) == (1000, 40)
    found = find_memory_use(500, tmp_path, tmp_path / "none")
    assert (found.limit, found.read()) == (500, 40)


@pytest.mark.parametrize(("version", "unlimited"), [(1, "9223372036854771712"), (2, "max")])
def test_without_a_limit_there_is_none(version: int, unlimited: str, tmp_path: Path) -> None:
    found = find_memory_use(0, group(tmp_path, version, unlimited), tmp_path / "none")
    assert found.limit == 0


def test_a_limit_of_bytes_outside_a_container_is_of_this_process(tmp_path: Path) -> None:
    found = find_memory_use(10**12, tmp_path, tmp_path / "none")
    assert found.limit == 10**12
    # the heap may keep what is freed
    with mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held[:] = b"x" * len(held)
        before = found.read()
        assert 64 * 2**20 < before < math.inf
    assert found.read() < before


def test_the_group_of_this_process_is_found_below_the_root(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/pods/a\n")
    below = tmp_path / "pods/a"
    below.mkdir(parents=True)
    group(below, 2, "77")
    assert find_memory_use(0, tmp_path, own).limit == 77


def test_the_servers_own_limits_are_those_of_its_settings() -> None:
    settings = Settings(server=ServerSettings(max_bytes_in_flight=100))
    assert "bodies" in pressures(settings)
