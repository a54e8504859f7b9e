"""A scrape is what the library writes, byte for byte, whatever changed since the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Counter, Gauge, Histogram, Info, Summary
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from predictors.protocol.http import exposition
from predictors.protocol.http.exposition import MAX_FORMATS, Scraper

PLAIN, OPEN = "", "application/openmetrics-text; version=1.0.0"
ACCEPTS = [
    PLAIN,
    OPEN,
    "application/openmetrics-text",
    "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8",
    "text/plain; version=1.0.0; escaping=allow-utf-8",
    "text/plain; version=0.0.4, */*; q=0.1",
]
TRACE = {"trace_id": "0af7651916cd43dd8448eb211c80319c"}


@dataclass
class Scene:
    """A registry of one's own with one series of each kind."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        mine = {"registry": self.registry}
        self.counter = Counter("asked", "How \\ often\nit was.", ["who", "reason"], **mine)
        self.gauge = Gauge("now", "", **mine)
        self.histogram = Histogram("took_seconds", "x", ["model"], buckets=(0.1, 1), **mine)
        self.summary = Summary("size", "y", ["model"], **mine)
        self.info = Info("about", "z", **mine)
        self.nobody = Gauge("nobody", "No child yet.", ["who"], **mine)

    def check(self, scraper: Scraper, accept: str) -> None:
        """The scraper and the library agree."""
        encode, content_type = choose_encoder(accept)
        assert scraper.scrape(accept) == (encode(self.registry), content_type)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def changes() -> list[Callable[[Scene], object]]:
    """One after the other, on the same scene."""
    return [
        lambda s: None,
        lambda s: s.counter.labels("a", "ok").inc(),
        lambda s: s.counter.labels('q"\\\n,} 7', "ok").inc(1e9),
        lambda s: s.histogram.labels("m").observe(0.05),
        lambda s: s.histogram.labels("m").observe(0.5, TRACE),
        lambda s: s.histogram.labels("n").observe(7, TRACE),
        lambda s: s.histogram.labels("n").observe(7.5, {"trace_id": 'x"} 3.0'}),
        lambda s: s.summary.labels("m").observe(3),
        lambda s: s.gauge.set(float("nan")),
        lambda s: s.gauge.set(float("-inf")),
        lambda s: s.gauge.set(-0.0),
        lambda s: s.info.info({"version": "1"}),
        lambda s: s.info.info({"version": "2"}),
        lambda s: s.counter.labels(
            "line\u2028\x85\x0b\r", "# HELP"
        ).inc(),  # no lines to Prometheus
        lambda s: s.counter.remove("a", "ok"),
        lambda s: s.counter.labels("b", "ok").inc(),  # as many as before, of somebody else
        lambda s: s.registry.register(Stamped()),
        lambda s: s.registry.unregister(s.summary),
        lambda s: s.histogram.clear(),
    ]


class Stamped(Collector):
    """Somebody else's family, with times of its own."""

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("foreign", "Looked at.", labels=["a"])
        family.add_metric(["x"], 1.5, timestamp=1e9)
        yield family


@pytest.mark.parametrize("accept", ACCEPTS)
def test_every_change_is_written_as_the_library_writes_it(scene: Scene, accept: str) -> None:
    scraper = Scraper(scene.registry)
    for change in changes():
        change(scene)
        scene.check(scraper, accept)
        scene.check(scraper, accept)


@given(
    st.lists(
        st.tuples(
            st.text(max_size=8), st.floats(min_value=0, allow_nan=False, allow_infinity=False)
        ),
        max_size=6,
    )
)
def test_any_label_and_any_value_is_written_as_the_library_writes_it(
    observed: list[tuple[str, float]],
) -> None:
    scene = Scene()
    scraper = Scraper(scene.registry)
    for who, value in observed:
        scene.counter.labels(who, "ok").inc(value)
        scene.histogram.labels(who).observe(value, {"trace_id": who})
        scene.gauge.set(-value)
        for accept in (PLAIN, OPEN):
            scene.check(scraper, accept)


def test_what_stays_the_same_is_not_encoded_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []

    def watched(accept: str) -> tuple[Callable[[Collector], bytes], str]:
        encode, content_type = choose_encoder(accept)

        def noted(registry: Collector) -> bytes:
            encoded.extend(family.name for family in registry.collect())
            return encode(registry)

        return noted, content_type

    monkeypatch.setattr(exposition.exposition, "choose_encoder", watched)
    scraper = Scraper(scene.registry)
    for change in changes()[:4]:
        change(scene)
    scraper.scrape(OPEN)
    del encoded[:]
    scene.counter.labels("a", "ok").inc()
    scene.histogram.labels("m").observe(0.5)
    assert b"asked_total" in scraper.scrape(OPEN)[0]
    assert encoded == []
    scene.counter.labels("b", "ok").inc()
    scraper.scrape(OPEN)
    assert encoded == ["asked"]


def test_who_names_ever_new_versions_fills_no_memory(scene: Scene) -> None:
    scraper = Scraper(scene.registry)
    for minor in range(3 * MAX_FORMATS):
        scene.check(scraper, f"application/openmetrics-text; version=1.0.{minor}")
    assert len(scraper._formats) <= MAX_FORMATS
