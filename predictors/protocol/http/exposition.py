"""Prometheus text exposition, byte for byte what `prometheus_client` writes, in a third of the
time.

Names, labels, escapes, order and headers come from the library's own encoder, which encodes each
family once with sample indexes in place of values. That text is cached, and only values are
formatted. A family that changed, or has samples other than plain numbers, is encoded by the
library.
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
    """Cached text of one family. `parts` holds the text before each value with the sample's index;
    `tail` is the text after the last value."""

    fingerprint: tuple[object, ...]
    parts: tuple[tuple[str, int], ...]
    tail: str


class _Families(Collector):
    def __init__(self, *families: Metric) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _Format:
    def __init__(self, encode: Callable[[Collector], bytes]) -> None:
        self._encode = encode
        self._closing = encode(_Families()).decode()
        self._layouts: dict[str, _Layout] = {}

    def text(self, registry: Collector) -> bytes:
        pieces: list[str] = []
        for family in registry.collect():
            pieces += self._family_text(family)
        return "".join([*pieces, self._closing]).encode()

    def _family_text(self, family: Metric) -> Iterator[str]:
        samples = family.samples
        if any(_needs_library(sample) for sample in samples):
            yield self._encode_family(family)
            return
        fingerprint = _fingerprint(family)
        layout = self._layouts.get(family.name)
        if layout is None or layout.fingerprint != fingerprint:
            layout = self._layouts[family.name] = self._layout(family, fingerprint)
        for head, index in layout.parts:
            sample = samples[index]
            yield head
            if sample.exemplar is None:
                yield floatToGoString(sample.value)  # type: ignore[no-untyped-call]
            else:  # few: at most one per bucket, from a traced request
                line = self._encode_family(_with_samples(family, [sample])).split("\n")[-2]
                yield line[len(head.rpartition("\n")[2]) :]
        yield layout.tail

    def _layout(self, family: Metric, fingerprint: tuple[object, ...]) -> _Layout:
        """Encode with each sample's index in place of its value, and split at the values."""
        numbered = [
            sample._replace(value=float(index), exemplar=None)
            for index, sample in enumerate(family.samples)
        ]
        parts, before = [], ""
        for line in self._encode_family(_with_samples(family, numbered)).split("\n")[:-1]:
            if line.startswith("#"):
                before += f"{line}\n"
                continue
            head, _, index = line.rpartition(" ")
            parts.append((f"{before}{head} ", int(float(index))))
            before = "\n"
        return _Layout(fingerprint, tuple(parts), before)

    def _encode_family(self, family: Metric) -> str:
        return self._encode(_Families(family)).decode().removesuffix(self._closing)


class Scraper:
    """Encodes all metrics of `registry`. Any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._formats: dict[str, _Format] = {}

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type for an `Accept` header. Takes milliseconds."""
        encode, content_type = exposition.choose_encoder(accept)
        known = self._formats.get(content_type)
        if known is None:
            if len(self._formats) >= MAX_FORMATS:
                self._formats = {}
            known = self._formats[content_type] = _Format(encode)
        return known.text(self._registry), content_type


def _fingerprint(family: Metric) -> tuple[object, ...]:
    """Everything that determines a family's text except values."""
    named = [(sample.name, sample.labels) for sample in family.samples]
    return family.documentation, family.type, family.unit, named


def _needs_library(sample: Sample) -> bool:
    return sample.timestamp is not None or sample.native_histogram is not None


def _with_samples(family: Metric, samples: list[Sample]) -> Metric:
    other = copy.copy(family)
    other.samples = samples
    return other
