"""The text of a scrape, byte for byte what `prometheus_client` writes, for a third of the work:
what stays the same from scrape to scrape is kept, only values are written anew. Knows no series.

All that the format is made of (names, labels, escapes, order, headers) comes out of the library's
own encoder, which is shown each family once with numbers instead of values; whatever has changed
since, or is not a plain number, it encodes itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import exposition
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

MAX_FORMATS = 4
"""Kept at a time: a caller's `Accept` can name any number of versions."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """One family: `parts` are what comes before a value, and whose value that is; `tail` is what
    comes after the last."""

    about: tuple[object, ...]
    parts: tuple[tuple[str, int], ...]
    tail: str


class _Families(Collector):
    """What an encoder is to encode."""

    def __init__(self, *families: Metric) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _Format:
    """What one encoder of the library would write."""

    def __init__(self, encode: Callable[[Collector], bytes]) -> None:
        self._encode = encode
        self._closing = encode(_Families()).decode()
        self._layouts: dict[str, _Layout] = {}

    def text(self, registry: Collector) -> bytes:
        """All of `registry`."""
        pieces: list[str] = []
        for family in registry.collect():
            pieces += self._pieces(family)
        return "".join([*pieces, self._closing]).encode()

    def _pieces(self, family: Metric) -> Iterator[str]:
        samples = family.samples
        if any(_is_special(sample) for sample in samples):
            yield self._encoded(family)
            return
        about = _about(family)
        layout = self._layouts.get(family.name)
        if layout is None or layout.about != about:
            layout = self._layouts[family.name] = self._layout(family, about)
        for head, index in layout.parts:
            sample = samples[index]
            yield head
            if sample.exemplar is None:
                yield floatToGoString(sample.value)  # type: ignore[no-untyped-call]
            else:  # a few: the last one of each bucket that a traced request fell into
                line = self._encoded(_with(family, [sample])).split("\n")[-2]
                yield line[len(head.rpartition("\n")[2]) :]
        yield layout.tail

    def _layout(self, family: Metric, about: tuple[object, ...]) -> _Layout:
        """The library's lines for each sample's index in place of its value."""
        numbered = [
            sample._replace(value=float(index), exemplar=None)
            for index, sample in enumerate(family.samples)
        ]
        parts, before = [], ""
        for line in self._encoded(_with(family, numbered)).split("\n")[:-1]:
            if line.startswith("#"):
                before += f"{line}\n"
                continue
            head, _, index = line.rpartition(" ")
            parts.append((f"{before}{head} ", int(float(index))))
            before = "\n"
        return _Layout(about, tuple(parts), before)

    def _encoded(self, family: Metric) -> str:
        return self._encode(_Families(family)).decode().removesuffix(self._closing)


class Scraper:
    """Answers scrapes of `registry`. Any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._formats: dict[str, _Format] = {}

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """The text and its content type, for who accepts `accept`. Milliseconds of work."""
        encode, content_type = exposition.choose_encoder(accept)
        known = self._formats.get(content_type)
        if known is None:
            if len(self._formats) >= MAX_FORMATS:
                self._formats = {}
            known = self._formats[content_type] = _Format(encode)
        return known.text(self._registry), content_type


def _about(family: Metric) -> tuple[object, ...]:
    """What the text of a family is made of, but for values."""
    named = [(sample.name, sample.labels) for sample in family.samples]
    return family.documentation, family.type, family.unit, named


def _is_special(sample: Sample) -> bool:
    return sample.timestamp is not None or sample.native_histogram is not None


def _with(family: Metric, samples: list[Sample]) -> Metric:
    other = copy.copy(family)
    other.samples = samples
    return other
