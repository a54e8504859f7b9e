"""Adding and removing adapters (LoRA) of one served model: file, device tables, and the names that
requests may use, in the order in which no accepted request loses its adapter.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.diffusion.engine import DiffusionEngine
from predictors.diffusion.known_adapters import KnownAdapters, ReadsAdapters
from predictors.diffusion.model import DiffusionModel
from predictors.errors import InvalidRequest, NotFound, NotSupported, Overloaded
from predictors.protocol.names import check_name
from predictors.protocol.openai.lora_fields import NAME_RULE, is_adapter_name

log = logging.getLogger(__name__)


class LoraChanges:
    """The operators' side of one model's adapters. Any thread; methods block."""

    def __init__(
        self,
        model_name: str,
        model: DiffusionModel,
        engine: DiffusionEngine,
        known: KnownAdapters,
        max_rank: int,
    ) -> None:
        self.known = known
        self._model_name = model_name
        self._model = model
        self._engine = engine
        self._max_rank = max_rank
        self._lock = threading.Lock()
        self._changing: set[str] = set()

    def add(self, name: str, path: Path, root: Path | None = None) -> AdapterSummary:
        """Load the adapter in a file or folder; requests may use it on return. Before the engine
        loads, it is loaded with it.

        `root`: the folder that links may lead to; None: the adapter's own. Raises `InvalidRequest`
        naming what does not fit, and `Overloaded` while this name is being added or removed.
        """
        if not isinstance(self._model, ReadsAdapters):
            raise NotSupported(f"model {self._model_name!r} takes no adapters")
        if not is_adapter_name(name):
            raise InvalidRequest(f"an adapter's name has {NAME_RULE}", param="name")
        check_name(f"{self._model_name}:{name}")
        with self._alone(name):
            if name in self.known.names:
                raise InvalidRequest(
                    f"adapter {name!r} is loaded already; remove it first", param="name"
                )
            weights, summary = self._model.read_adapter(
                path, name, max_rank=self._max_rank, root=root
            )
            self._engine.add_adapter(weights)
            self.known.add(summary)
        linears = ", ".join(f"{count} of {part}" for part, count in summary.linears.items())
        log.info(
            "%s: adapter %s (%s, %s) of rank %d changes %s linears",
            self._model_name, name, summary.file, summary.format, summary.rank, linears,
        )  # fmt: skip
        return summary

    def remove(self, name: str) -> AdapterSummary:
        """Refuse new requests for it, and return once accepted ones are answered and its memory is
        free. Raises `NotFound`, and `Overloaded` as `add`."""
        with self._alone(name):
            summary = self.known.withdraw(name)
            if summary is None:
                loaded = ", ".join(self.known.names) or "none"
                raise NotFound(
                    f"model {self._model_name!r} has no adapter {name[:64]!r}; loaded: {loaded}"
                )
            self.known.wait_unheld(name)
            self._engine.remove_adapter(name)
            self.known.forget(name)
        log.info("%s: adapter %s was removed", self._model_name, name)
        return summary

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        with self._lock:
            if name in self._changing:
                raise Overloaded(f"adapter {name[:64]!r} is being added or removed; try later")
            self._changing.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._changing.discard(name)
