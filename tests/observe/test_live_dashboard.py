"""Every expression of dashboard, rules and alerts has data where a real Prometheus scrapes the
real server under mixed load, and the outcomes that it counted are those that the load saw."""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from predictors.metrics import PROTOCOLS
from tests.observe.clients import Clients, Kind, counted
from tests.observe.conftest import WriteRules
from tests.observe.daemon import wait_until
from tests.observe.live import MODELS, Live
from tests.observe.load import LEFT_OR_OK, mixed_load
from tests.observe.prometheus import Prometheus
from tests.observe.test_alerts import RULES, known
from tests.observe.test_dashboard import BOARD, PANELS
from tools import dashboard_pictures

POD = {"namespace": "observed", "isvc": "pictures", "pod": "pictures-predictor-0"}
LOAD_S = 20.0
MOST_SAMPLES = 2500
"""Of one scrape of a server of two models, whatever it has served."""
RATE_S = 4  # Grafana's $__rate_interval: four scrapes
OUTCOMES = {"ok", "invalid_input", "queue_full", "deadline"}
DOORS = len(MODELS) * len(PROTOCOLS)

# what only a machine with a GPU has; nothing else may be without data
GPU_SERIES = {
    "predictors_gpu_memory_bytes",
    "predictors_gpu_utilization_ratio",
    "predictors_gpu_temperature_celsius",
    "predictors_gpu_power_watts",
    "predictors_gpu_power_limit_watts",
    "predictors_gpu_xid_errors_total",
    "predictors_gpu_energy_joules_total",
}
ENERGY_OF_JOBS = {"predictors_energy_joules_total", "predictors_request_energy_joules_bucket"}
"""Of a card's driver, by model."""


@dataclass
class Observed:
    """A server, the Prometheus that watched it, and the load that it was under."""

    live: Live
    prometheus: Prometheus
    seen: Counter[Kind]
    began_s: float
    ended_s: float
    scrapes_s: list[float]
    plain_s: list[float]


@pytest.fixture(scope="module")
def observed(
    needs_prometheus: None, write_rules: WriteRules, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    rules = write_rules({})
    settings = {
        "PREDICTORS_QUEUE_CAPACITY": "2",
        "PREDICTORS_FLUX_SLOTS": "2",
        "PREDICTORS_OVERLOAD_LOOP_LAG_S": "0",  # a busy machine makes the event loop late
    }
    with Live(folder / "server.log", settings) as live:
        live.wait_warm()
        with Prometheus(folder, {live.address: POD}, rules) as prometheus, Clients(live) as clients:
            prometheus.wait_scraped()
            began_s = time.time()
            with mixed_load(clients):
                scrapes_s, plain_s = scrape_for(live, LOAD_S)
                wait_until(lambda: has_everything(clients.seen), lambda: f"only {clients.seen}")
            live.wait_idle()
            # those who left without looking may come to the server's notice last
            wait_until(
                lambda: counted(live).total() == clients.seen.total(),
                lambda: f"{counted(live)} is not {clients.seen}",
            )
            ended_s = prometheus.wait_scraped()
            yield Observed(live, prometheus, clients.seen, began_s, ended_s, scrapes_s, plain_s)


def scrape_for(live: Live, seconds: float) -> tuple[list[float], list[float]]:
    """How long scrapes took, a few a second for so long: more would be load of their own. And how
    long the plainest answer of the same server took beside each."""
    took: dict[str, list[float]] = {"/metrics": [], "/no/such/route": []}
    end = time.monotonic() + seconds
    while not threading.Event().wait(0.25) and time.monotonic() < end:
        for path, found in took.items():
            began = time.perf_counter()
            assert live.admin.get(path).status_code in (200, 404)
            found.append(time.perf_counter() - began)
    scrapes_s, plain_s = took.values()
    return scrapes_s, plain_s


def has_everything(seen: Counter[Kind]) -> bool:
    """True if the load met every outcome and came through every door that tests look for."""
    doors = {(kind.model, kind.protocol) for kind in list(seen) if kind.reason == "ok"}
    return {kind.reason for kind in list(seen)} >= OUTCOMES and len(doors) == DOORS


def as_grafana_asks(observed: Observed, expression: str) -> str:
    """The expression with its variables filled in by what the server's own series have."""
    for name in ("namespace", "isvc", "model", "pod"):
        values = observed.prometheus.label_values(name, "predictors_model_ready")
        assert values, f"the variable {name} has nothing to choose from"
        expression = expression.replace(f"${name}", "|".join(values))
    (objective,) = [v for v in BOARD["templating"]["list"] if v["name"] == "objective"]
    expression = expression.replace("$objective", objective["query"])
    span_s = round(observed.ended_s - observed.began_s)
    filled = expression.replace("$__rate_interval", f"{RATE_S}s").replace("$__range", f"{span_s}s")
    assert "$" not in filled, filled
    return filled


def is_expected(expression: str) -> bool:
    """True if this machine has what the expression asks for."""
    named = set(re.findall(r"\bpredictors[_:][\w:]+", expression))
    return torch.cuda.is_available() or not named or not named <= GPU_SERIES | ENERGY_OF_JOBS


def data_of(observed: Observed, expression: str) -> list[float]:
    """Every finite sample of the time under load."""
    return observed.prometheus.numbers(expression, observed.began_s, observed.ended_s)


@pytest.mark.parametrize("title", [panel["title"] for panel in PANELS])
def test_every_panel_has_data(observed: Observed, title: str) -> None:
    (panel,) = [panel for panel in PANELS if panel["title"] == title]
    for target in panel["targets"]:
        found = data_of(observed, as_grafana_asks(observed, target["expr"]))
        assert bool(found) == is_expected(target["expr"]), target["expr"]


def test_what_may_be_absent_is_every_declared_series_of_the_gpu_and_none_else() -> None:
    assert {name for name in known() if name.startswith("predictors_gpu_")} == GPU_SERIES
    asked = {target["expr"] for panel in PANELS for target in panel["targets"]}
    shown = {name for text in asked for name in re.findall(r"predictors_gpu_\w+", text)}
    assert shown == GPU_SERIES, "a series that no panel shows"
    assert len([text for text in asked if GPU_SERIES & set(re.findall(r"\w+", text))]) == 7


def test_panels_that_show_a_rate_show_more_than_nothing(observed: Observed) -> None:
    """A label that no longer matches would still give lines of zeros."""
    for panel in PANELS:
        for target in panel["targets"]:
            if "rate(" in target["expr"] and is_expected(target["expr"]):
                found = data_of(observed, as_grafana_asks(observed, target["expr"]))
                assert max(found, default=0) > 0, panel["title"]


def test_a_row_is_drawn_where_it_has_data(
    observed: Observed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_pictures, "FOLDER", tmp_path / "pictures")
    assert dashboard_pictures.draw("Saturation", observed)
    assert dashboard_pictures.is_current("Saturation")
    assert dashboard_pictures.draw("GPU", observed) == torch.cuda.is_available()


def test_every_variable_of_the_dashboard_can_be_chosen(observed: Observed) -> None:
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
            assert asked is not None, variable["query"]
            assert observed.prometheus.label_values(asked[2], asked[1])


def test_every_rule_is_evaluated_without_an_error(observed: Observed) -> None:
    rules = observed.prometheus.rules()
    assert len(rules) == len(RULES)
    for rule in rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]


@pytest.mark.parametrize("name", [rule["record"] for rule in RULES if "record" in rule])
def test_every_recorded_series_has_data(observed: Observed, name: str) -> None:
    assert data_of(observed, name)


SELECTOR = r"\b(predictors[_:][\w:]+|process_\w+|up)(\{[^}]*\})?(?=[\s\[)]|$)"


@pytest.mark.parametrize("name", [rule["alert"] for rule in RULES if "alert" in rule])
def test_every_series_that_an_alert_asks_for_is_there(observed: Observed, name: str) -> None:
    (rule,) = [rule for rule in RULES if rule.get("alert") == name]
    selectors = re.findall(SELECTOR, rule["expr"])
    assert selectors
    for series, labels in selectors:
        found = data_of(observed, f"count({series}{labels})")
        assert bool(found) == is_expected(series), series + labels


def test_a_series_that_was_renamed_has_no_data(observed: Observed) -> None:
    """The tests above can fail: a series of another name has no data."""
    assert not data_of(observed, "predictors_requests_total_renamed")
    assert not data_of(observed, 'count(predictors_requests_total{reason="queue_is_full"})')


def test_the_server_counted_what_the_load_saw(observed: Observed) -> None:
    told, seen = counted(observed.live), Counter(observed.seen)
    for kind in [kind for kind in seen if kind.reason == LEFT_OR_OK]:
        number = seen.pop(kind)
        # those of that door that were answered were counted by the streams that stayed
        answered, left = kind._replace(reason="ok"), kind._replace(reason="cancelled")
        assert told[answered] + told[left] + told[kind._replace(reason="queue_full")] == (
            number + seen[answered] + seen[kind._replace(reason="queue_full")]
        )
        for reason in ("ok", "cancelled", "queue_full"):
            told.pop(kind._replace(reason=reason), None)
            seen.pop(kind._replace(reason=reason), None)
    assert told == seen
    assert has_everything(observed.seen)


def test_prometheus_has_the_same_counts_and_no_job_waits_or_runs(observed: Observed) -> None:
    asked = "sum by (model, protocol, operation, reason) (predictors_requests_total) > 0"
    scraped = {
        Kind(**series["metric"]): round(float(series["value"][1]))
        for series in observed.prometheus.query(asked, observed.ended_s)
    }
    assert scraped == counted(observed.live)
    for gauge in ("waiting", "running"):
        assert max(data_of(observed, f"predictors_requests_{gauge}")) > 0
        assert observed.prometheus.value(f"predictors_requests_{gauge}", observed.ended_s) == 0


def test_the_work_of_a_scrape_under_full_load_is_bounded(
    observed: Observed, record_property: Callable[[str, object], None]
) -> None:
    """Each sample is work of the same size. The times are figures: neighbours decide them."""
    own = sorted(observed.scrapes_s)
    theirs = data_of(observed, "scrape_duration_seconds")
    plain_s = statistics.median(observed.plain_s)
    figures = {
        "scrapes": len(own),
        "median_ms": round(1000 * statistics.median(own), 1),
        "p99_ms": round(1000 * own[int(len(own) * 0.99)], 1),
        "max_ms": round(1000 * own[-1], 1),
        "plain_median_ms": round(1000 * plain_s, 1),
        "prometheus_median_ms": round(1000 * statistics.median(theirs), 1),
        "prometheus_max_ms": round(1000 * max(theirs), 1),
        "samples": max(data_of(observed, "scrape_samples_scraped")),
    }
    print(json.dumps(figures))  # noqa: T201 - a measurement, with `pytest -rP`
    record_property("scrape", json.dumps(figures))
    assert figures["samples"] < MOST_SAMPLES
