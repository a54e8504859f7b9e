"""The adapters (LoRA) that requests to one model may use now, and the requests that use them.

Requests are checked against the names before they wait, on the event loop or in pool threads;
an operator adds and removes adapters meanwhile.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from predictors import metrics
from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.diffusion.request import LoraScale
from predictors.errors import InvalidRequest
from predictors.protocol.openai.lora_fields import MAX_LORAS, MAX_SCALE

if TYPE_CHECKING:
    from predictors.diffusion.adapters import AdapterWeights

MAX_SHOWN = 64  # characters of an unknown name that an error repeats


@runtime_checkable
class ReadsAdapters(Protocol):
    """Optional part of a `DiffusionModel`: it reads adapters from files."""

    def read_adapter(
        self, path: Path, name: str, *, max_rank: int, root: Path | None = None
    ) -> tuple[AdapterWeights, AdapterSummary]:
        """The adapter in a file or folder, whose links may lead into `root` only. Any thread; takes
        seconds for a large one. Raises `InvalidRequest` naming what does not fit."""


class KnownAdapters:
    """The adapters of one model by name. Any thread."""

    def __init__(self, model: str = "") -> None:
        """`model` is the metrics' label."""
        self._model = model
        self._changed = threading.Condition()
        self._summaries: dict[str, AdapterSummary] = {}
        self._names: tuple[str, ...] = ()
        self._uses: Counter[str] = Counter()

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they were added."""
        return self._names

    @property
    def summaries(self) -> Sequence[AdapterSummary]:
        with self._changed:
            return list(self._summaries.values())

    def check(self, asked: Iterable[LoraScale]) -> tuple[LoraScale, ...]:
        """Those of `asked` that have an effect, in their order.

        Raises `InvalidRequest` for a name that is unknown or given twice, a scale out of range,
        and more than `MAX_LORAS`.
        """
        asked = tuple(asked)
        if len(asked) > MAX_LORAS:
            raise _bad(f"loras has {len(asked)} adapters; at most {MAX_LORAS} are taken")
        seen: set[str] = set()
        for each in asked:
            if each.name in seen:
                raise _bad(f"adapter {each.name[:MAX_SHOWN]!r} is asked for twice")
            seen.add(each.name)
            if each.name not in self._names:
                known = ", ".join(self._names) or "none"
                raise _bad(f"there is no adapter {each.name[:MAX_SHOWN]!r}; loaded: {known}")
            if not (math.isfinite(each.scale) and abs(each.scale) <= MAX_SCALE):
                raise _bad(
                    f"the scale of adapter {each.name!r} must be a number from {-MAX_SCALE:g} to "
                    f"{MAX_SCALE:g}, not {str(each.scale)[:32]}"
                )
        return tuple(each for each in asked if each.scale)

    # -- for operators ---------------------------------------------------------------------------
    def add(self, adapter: AdapterSummary) -> None:
        """Requests may use it from now on."""
        with self._changed:
            self._summaries[adapter.name] = adapter
            self._names = tuple(self._summaries)
            metrics.loras_loaded.labels(self._model).set(len(self._names))
        metrics.register_lora(self._model, adapter.name)

    def withdraw(self, name: str) -> AdapterSummary | None:
        """Requests may not use it any more; returns its description, None for an unknown one."""
        with self._changed:
            adapter = self._summaries.pop(name, None)
            self._names = tuple(self._summaries)
            metrics.loras_loaded.labels(self._model).set(len(self._names))
        return adapter

    def forget(self, name: str) -> None:
        """End the series of an adapter that is gone."""
        metrics.unregister_lora(self._model, name)

    def count_picture(self, loras: Iterable[LoraScale]) -> None:
        """Count one finished picture for each of its adapters that is still there."""
        for each in loras:
            if each.name in self._names:
                metrics.lora_images_total.labels(self._model, each.name).inc()

    # -- requests --------------------------------------------------------------------------------
    @contextmanager
    def held(self, loras: Iterable[LoraScale]) -> Iterator[None]:
        """Within the block `wait_unheld` waits. Raises `InvalidRequest` for an adapter that
        was withdrawn since the request was checked."""
        names = [each.name for each in loras]
        with self._changed:
            for name in names:
                if name not in self._summaries:
                    raise _bad(f"adapter {name!r} was removed while the request was prepared")
            self._uses.update(names)
        try:
            yield
        finally:
            with self._changed:
                self._uses.subtract(names)
                self._changed.notify_all()

    def wait_unheld(self, name: str) -> None:
        """Block until no request holds a withdrawn adapter any more. No more than the preparing of
        a request."""
        with self._changed:
            self._changed.wait_for(lambda: not self._uses[name])
            del self._uses[name]


def _bad(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="loras")
