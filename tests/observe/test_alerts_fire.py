"""Alerts are silent while all is well, and fire, seen through Prometheus, once a real server has
real trouble. The rules are the shipped ones with durations of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from predictors.errors import FAILED_EXIT_CODE
from tests.observe.alertmanager import Alertmanager
from tests.observe.clients import Clients, picture, words
from tests.observe.conftest import WriteRules
from tests.observe.faulty import BUG, FOLDER, POISON, Faults
from tests.observe.live import Live
from tests.observe.prometheus import Prometheus

POD = {"namespace": "observed", "isvc": "pictures", "pod": "pictures-predictor-0"}
SETTINGS = {
    "PREDICTORS_QUEUE_CAPACITY": "2",
    "PREDICTORS_FLUX_SLOTS": "1",
    "PREDICTORS_OVERLOAD_LOOP_LAG_S": "0",  # a busy machine makes the event loop late
}
CHOSEN: dict[str, dict[str, Any]] = {
    "ScrapeFailing": {"for": "10s"},  # a busy machine loses a scrape or two: that is no trouble
    "ModelGone": {"for": "10s"},
    "ModelNotReadyTooLong": {"for": "2s"},
    "DrainingTooLong": {"for": "2s"},
    "ErrorBudgetBurnFast": {"for": "2s"},
    "ErrorBudgetBurnSlow": {"for": "2s"},
    "QueueSaturated": {"for": "2s"},
    "HeadOfLineTooOld": {"for": "1s", "above": 8},
    "RejectionsHigh": {"for": "1s"},
    "FirstImageSlow": {"for": "1s", "above": 8},  # no picture takes so long unless it is held
    "EngineStalled": {"for": "2s"},
}


@dataclass
class Trouble:
    """A server that can be hurt, and what Prometheus says of it."""

    live: Live
    clients: Clients
    faults: Faults
    prometheus: Prometheus

    def firing(self) -> set[str]:
        """Names of the alerts that fire now, without our prefix."""
        return {name.removeprefix("Predictors") for name in self.prometheus.firing()}

    def wait_firing(self, *names: str, model: str | None = None) -> None:
        """Return once all of these fire; for this model, where it is given."""

        def holds() -> bool:
            firing = self.prometheus.firing()
            return all(
                any(model in (None, labels.get("model")) for labels in firing.get(name, []))
                for name in (f"Predictors{name}" for name in names)
            )

        self.prometheus.wait_until(holds, f"{names} do not fire, but {self.firing()}")

    def assert_silent(self, *names: str) -> None:
        """None of these fires or is about to."""
        active = self.prometheus.active()
        assert not {f"Predictors{name}" for name in names} & set(active), active

    def wait_well_scraped(self) -> None:
        """Return once no scrape is missed, not even one that a busy machine answered too late."""
        missed = {"PredictorsScrapeFailing", "PredictorsModelGone"}
        self.prometheus.wait_until(
            lambda: not missed & set(self.prometheus.active()), "the server is not scraped"
        )

    def wait_silent(self, *names: str) -> None:
        quiet = f"{names} do not fall silent"
        self.prometheus.wait_until(lambda: not self.firing() & set(names), quiet)

    @contextmanager
    def hanging(self, model: str, asks: int) -> Iterator[None]:
        """No step of `model` ends in this block, and so many requests want one; they are answered
        when it is over."""
        ask: Callable[[], str] = {
            "flux": lambda: self.clients.rest("flux", picture()),
            "qwen-vl": lambda: self.clients.rest("qwen-vl", words()),
        }[model]
        with ThreadPoolExecutor(asks) as pool, ExitStack() as after:
            self.faults.set(f"hang-{model}")
            after.callback(self.faults.clear, f"hang-{model}")
            asked = [pool.submit(ask)]
            self.live.wait_view(model, running=1)
            asked += [pool.submit(ask) for _ in range(asks - 1)]
            self.live.wait_view(model, running=1, queued=asks - 1)
            yield
        assert {each.result() for each in asked} == {"ok"}


@contextmanager
def watched(
    folder: Path, rules: list[Path], *faults: str, tells: Sequence[str] = ()
) -> Iterator[Trouble]:
    """A server that starts with these faults, and a Prometheus that watches it from then on and
    tells the Alertmanagers at these addresses."""
    own = Faults(folder / "faults")
    (folder / "faults").mkdir(parents=True)
    for name in faults:
        own.set(name)
    settings = {**SETTINGS, FOLDER: str(folder / "faults")}
    with ExitStack() as stack:
        live = stack.enter_context(Live(folder / "server.log", settings, "tests.observe.faulty"))
        live.wait_listening()
        if not faults:
            live.wait_warm()
        targets = {live.admin_address: POD}
        prometheus = stack.enter_context(Prometheus(folder, targets, rules, tells))
        clients = stack.enter_context(Clients(live))
        prometheus.wait_scraped()
        yield Trouble(live, clients, own, prometheus)


@pytest.fixture(scope="module")
def trouble(
    needs_prometheus: None, write_rules: WriteRules, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trouble]:
    with watched(tmp_path_factory.mktemp("trouble"), write_rules(CHOSEN)) as made:
        yield made


def test_nothing_fires_while_all_is_well(trouble: Trouble) -> None:
    for i in range(3):
        assert trouble.clients.rest("flux", picture(seed=i)) == "ok"
        assert trouble.clients.rest("flux", picture(steps=10_000)) == "invalid_input"
        trouble.prometheus.wait_scraped()
    assert trouble.firing() == set()
    trouble.prometheus.wait_until(
        lambda: trouble.prometheus.value("count(predictors:slo_errors:ratio_rate5m >= 0)") == 1,
        "the ratio of the one model that was asked is not recorded",
    )
    assert trouble.firing() == set()


def test_an_engine_that_stalls(trouble: Trouble) -> None:
    trouble.assert_silent("EngineStalled")
    with trouble.hanging("qwen-vl", asks=1):
        trouble.wait_firing("EngineStalled", model="qwen-vl")
        assert trouble.firing() == {"EngineStalled"}  # flux has nothing to do, and is silent
    trouble.wait_silent("EngineStalled")


def test_an_error_budget_that_burns(trouble: Trouble) -> None:
    trouble.assert_silent("ErrorBudgetBurnFast", "ErrorBudgetBurnSlow")
    for _ in range(4):
        assert trouble.clients.rest("flux", picture(prompt=BUG)) == "internal"
    trouble.wait_firing("ErrorBudgetBurnFast", "ErrorBudgetBurnSlow", model="flux")


def test_a_queue_that_is_full(trouble: Trouble) -> None:
    trouble.assert_silent("QueueSaturated", "HeadOfLineTooOld", "RejectionsHigh", "FirstImageSlow")
    with trouble.hanging("flux", asks=3):
        trouble.wait_firing("QueueSaturated", "HeadOfLineTooOld", model="flux")
        assert {trouble.clients.rest("flux", picture()) for _ in range(5)} == {"queue_full"}
        trouble.wait_firing("RejectionsHigh", model="flux")
    trouble.wait_firing("FirstImageSlow", model="flux")  # those who waited have their pictures now
    trouble.wait_silent("QueueSaturated", "HeadOfLineTooOld")


def test_something_compiles_after_ready(trouble: Trouble) -> None:
    trouble.assert_silent("CompilingAfterReady")
    trouble.faults.set("compile")
    assert trouble.clients.rest("flux", picture()) == "ok"
    trouble.wait_firing("CompilingAfterReady", model="flux")


def test_requests_that_poison_and_a_device_without_memory(trouble: Trouble) -> None:
    trouble.assert_silent("RequestsPoisoned", "OutOfMemory")
    assert trouble.clients.rest("flux", picture(prompt=POISON)) == "poisoned"
    trouble.wait_firing("RequestsPoisoned", model="flux")
    trouble.assert_silent("OutOfMemory")
    trouble.faults.set("memory")
    assert trouble.clients.rest("flux", picture()) == "oom"
    trouble.faults.clear("memory")
    trouble.wait_firing("OutOfMemory", model="flux")


def test_a_process_that_drains_too_long_and_then_is_gone(trouble: Trouble) -> None:
    trouble.assert_silent("DrainingTooLong")
    trouble.wait_well_scraped()
    with trouble.hanging("flux", asks=1):
        trouble.live.terminate()
        trouble.wait_firing("DrainingTooLong")
        trouble.assert_silent("ModelNotReadyTooLong")
        trouble.wait_well_scraped()
    assert trouble.live.wait_ended() == 0
    trouble.wait_firing("ScrapeFailing", "ModelGone")


def test_a_model_that_does_not_become_ready(
    needs_prometheus: None, write_rules: WriteRules, tmp_path: Path
) -> None:
    with watched(tmp_path, write_rules(CHOSEN), "hold-flux") as trouble:
        trouble.wait_firing("ModelNotReadyTooLong", model="flux")
        trouble.faults.clear("hold-flux")
        trouble.live.wait_warm()  # as long as a start may take
        trouble.wait_silent("ModelNotReadyTooLong")
        assert trouble.clients.rest("flux", picture()) == "ok"


def test_a_failed_engine_reaches_the_alertmanager_once_its_process_is_back(
    needs_prometheus: None, needs_alertmanager: None, write_rules: WriteRules, tmp_path: Path
) -> None:
    with (
        Alertmanager(tmp_path) as alertmanager,
        watched(tmp_path, write_rules(CHOSEN), tells=[alertmanager.address]) as trouble,
    ):
        trouble.assert_silent("ProcessRestarted")
        trouble.faults.set("lose")
        assert trouble.clients.rest("flux", picture()) == "engine_failed"
        assert trouble.live.wait_ended() == FAILED_EXIT_CODE
        trouble.live.start_again()
        told = alertmanager.wait_told("PredictorsProcessRestarted")
        assert told["labels"]["severity"] == "warning"
        assert told["labels"]["instance"] == trouble.live.admin_address
        assert POD.items() <= told["labels"].items()
        assert told["annotations"]["runbook_url"] == "docs/operations.md#processrestarted"
        trouble.live.wait_warm()
        assert trouble.clients.rest("flux", picture()) == "ok"
