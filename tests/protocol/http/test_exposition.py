"""The text of a scrape equals the library's, byte for byte, after any change of the metrics."""

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
class Example:
    """A registry with one series of each kind."""

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
        encode, content_type = choose_encoder(accept)
        assert scraper.scrape(accept) == (encode(self.registry), content_type)


@pytest.fixture
def example() -> Example:
    return Example()


def changes() -> list[Callable[[Example], object]]:
    """Changes applied one after another to one example."""
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
        ).inc(),  # not exposed in Prometheus text
        lambda s: s.counter.remove("a", "ok"),
        lambda s: s.counter.labels("b", "ok").inc(),  # same number of samples, other labels
        lambda s: s.registry.register(Stamped()),
        lambda s: s.registry.unregister(s.summary),
        lambda s: s.histogram.clear(),
    ]


class Stamped(Collector):
    """A collector whose samples have timestamps."""

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("foreign", "Looked at.", labels=["a"])
        family.add_metric(["x"], 1.5, timestamp=1e9)
        yield family


@pytest.mark.parametrize("accept", ACCEPTS)
def test_the_text_equals_the_librarys_after_every_change(example: Example, accept: str) -> None:
    scraper = Scraper(example.registry)
    for change in changes():
        change(example)
        example.check(scraper, accept)
        example.check(scraper, accept)


@given(
    st.lists(
        st.tuples(
            st.text(max_size=8), st.floats(min_value=0, allow_nan=False, allow_infinity=False)
        ),
        max_size=6,
    )
)
def test_the_text_equals_the_librarys_for_any_label_and_value(
    observed: list[tuple[str, float]],
) -> None:
    example = Example()
    scraper = Scraper(example.registry)
    for who, value in observed:
        example.counter.labels(who, "ok").inc(value)
        example.histogram.labels(who).observe(value, {"trace_id": who})
        example.gauge.set(-value)
        for accept in (PLAIN, OPEN):
            example.check(scraper, accept)


def test_unchanged_families_are_not_encoded_again(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []

    def watched(accept: str) -> tuple[Callable[[Collector], bytes], str]:
        encode, content_type = choose_encoder(accept)

        def noted(registry: Collector) -> bytes:
            encoded.extend(family.name for family in registry.collect())
            return encode(registry)

        return noted, content_type

    monkeypatch.setattr(exposition.exposition, "choose_encoder", watched)
    scraper = Scraper(example.registry)
    for change in changes()[:4]:
        change(example)
    scraper.scrape(OPEN)
    del encoded[:]
    example.counter.labels("a", "ok").inc()
    example.histogram.labels("m").observe(0.5)
    assert b"asked_total" in scraper.scrape(OPEN)[0]
    assert encoded == []
    example.counter.labels("b", "ok").inc()
    scraper.scrape(OPEN)
    assert encoded == ["asked"]


def test_the_cache_of_formats_is_bounded(example: Example) -> None:
    scraper = Scraper(example.registry)
    for minor in range(3 * MAX_FORMATS):
        example.check(scraper, f"application/openmetrics-text; version=1.0.{minor}")
    assert len(scraper._formats) <= MAX_FORMATS
