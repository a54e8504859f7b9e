"""The adapters of one chat model that its requests may name now; an operator adds and removes
them meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from predictors import metrics
from predictors.chat.adapters.adapter import ChatAdapter
from predictors.chat.adapters.mix import UNADAPTED, AdapterMix
from predictors.chat.adapters.peft import read_peft_adapter
from predictors.chat.tensors import Shapes
from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.compute.device.placement import Placement
from predictors.errors import InvalidRequest, NotFound
from predictors.protocol.openai.lora_fields import NAME_RULE, is_adapter_name
from predictors.settings import QwenVLSettings


class NamedAdapters:
    """Any thread. `linears` are those of the served model, see `adaptable_linears`."""

    def __init__(
        self, model: str, linears: Shapes, settings: QwenVLSettings, placement: Placement
    ) -> None:
        self._set_loaded = metrics.loras_loaded.labels(model).set
        self._linears = linears
        self._max_active, self._max_rank = settings.lora_max_active, settings.adapter_rank
        self._placement = placement
        self._by_name: Mapping[str, ChatAdapter] = {}  # replaced whole, so that reads need no lock
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    @property
    def summaries(self) -> list[AdapterSummary]:
        return [adapter.summary for adapter in self._by_name.values()]

    def add(self, name: str, path: Path, root: Path | None = None) -> AdapterSummary:
        """Read the folder at `path`, whose links may lead into `root` only, and serve it as `name`.
        Blocks while reading. Raises `InvalidRequest` for a name that is not allowed or taken, and
        for an adapter that is not served."""
        if not self._max_active:
            raise InvalidRequest(
                f"the adapter {name!r} needs a place on the device: set qwen_vl.lora_max_active "
                "(PREDICTORS_QWEN_VL_LORA_MAX_ACTIVE) to 1 or more"
            )
        if not is_adapter_name(name):
            raise InvalidRequest(f"an adapter's name has {NAME_RULE}", param="name")
        self._check_free(name)
        try:
            stored = read_peft_adapter(path, self._linears, self._max_rank, root)
            adapter = ChatAdapter.of(name, stored, self._placement)
        except InvalidRequest as error:
            raise InvalidRequest(f"the adapter {name!r}: {error.message}") from error
        with self._lock:
            self._check_free(name)
            self._by_name = {**self._by_name, name: adapter}
            self._set_loaded(len(self._by_name))
        return adapter.summary

    def remove(self, name: str) -> ChatAdapter:
        """Serve `name` no longer; requests that were accepted keep it. Raises `NotFound`."""
        with self._lock:
            adapter = self._by_name.get(name)
            if adapter is None:
                raise NotFound(f"there is no adapter {name!r}")
            self._by_name = {key: each for key, each in self._by_name.items() if key != name}
            self._set_loaded(len(self._by_name))
        return adapter

    def mix(self, scales: Sequence[tuple[str, float]]) -> AdapterMix:
        """The adapters of a request with their scales. Raises `InvalidRequest` for a name that is
        not served or comes twice, and for more adapters than the device holds."""
        if not scales:
            return UNADAPTED
        by_name, found = self._by_name, dict[str, tuple[ChatAdapter, float]]()
        for name, scale in scales:
            adapter = by_name.get(name)
            if adapter is None:
                served = ", ".join(by_name) or "none"
                problem = f"there is no adapter {name[:64]!r}; served: {served}"
                raise InvalidRequest(problem, param="loras")
            if name in found:
                raise InvalidRequest(f"the adapter {name!r} is given twice", param="loras")
            found[name] = (adapter, scale)
        if len(found) > self._max_active:
            raise InvalidRequest(
                f"{len(found)} adapters are more than the {self._max_active} that one request may "
                "mix here (setting qwen_vl.lora_max_active)",
                param="loras",
            )
        return AdapterMix.of(found.values())

    def _check_free(self, name: str) -> None:
        if name in self._by_name:
            message = f"the adapter name {name!r} is taken; remove that one first"
            raise InvalidRequest(message, param="name")
