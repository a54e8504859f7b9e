"""The adapters (LoRA) that a server is started with: checks their names, and describes each file
before torch is imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.errors import InvalidRequest, ServingError
from predictors.protocol.names import check_name, read_aliases
from predictors.protocol.openai.lora_fields import NAME_RULE, is_adapter_name
from predictors.settings import Settings


@dataclass(frozen=True, slots=True)
class GivenAdapters:
    """The adapters that a server is started with."""

    paths: Mapping[str, Mapping[str, Path]]
    """Files or folders by model and adapter."""
    summaries: Mapping[tuple[str, str], Callable[[], AdapterSummary]]
    """Functions by model and adapter that describe the adapter as a start would load it, or raise
    `ServingError` with the start's own message. Each reads its file once."""

    def ranks(self) -> dict[str, int]:
        """The largest rank of each model's adapters. Raises `ServingError` for an adapter that is
        not served."""
        found: dict[str, int] = {}
        for (model, _), make_summary in self.summaries.items():
            found[model] = max(found.get(model, 0), make_summary().rank)
        return found

    def room(self, settings: Settings) -> Settings:
        """`settings` with room for the largest one that is served, as a start of its model has."""
        largest = 0
        for make_summary in self.summaries.values():
            with suppress(ServingError):
                largest = max(largest, make_summary().rank)
        return settings.with_adapter_rank(largest)


def find_adapters(
    paths: Mapping[str, Mapping[str, Path]],
    named: Mapping[str, Path],
    settings: Settings,
    describers: Mapping[str, str],
    components: Mapping[str, Mapping[str, Path]],
) -> GivenAdapters:
    """The adapters at `paths`, by model and name, for the models with the folders `named`.

    `describers` are the functions (`module:function`) that describe an adapter, by the models that
    take any; `components` folders of parts that replace a model's own. Raises `InvalidRequest` for
    a name that is not allowed, or that a model has.
    """
    taken = {*named, *read_aliases(settings.server.aliases)}
    found = {}
    for model, own in paths.items():
        for lora, path in own.items():
            _check_lora_name(model, lora, taken)
            found[model, lora] = cache(partial(
                _describe, describers[model], lora, path, named[model], settings,
                components.get(model) or {},
            ))  # fmt: skip
    return GivenAdapters(paths, found)


def room_for_given(settings: Settings, flags: Sequence[str]) -> Settings:
    """The settings as a start of one model, of either task, makes them for its adapters."""
    given = len(flags) + len(listed_loras(settings))
    return settings.with_adapter_room("flux", given).with_adapter_room("qwen_vl", given)


def listed_loras(settings: Settings) -> list[str]:
    """The adapters of `server.loras`, each as `--lora` takes it."""
    return [each for each in map(str.strip, settings.server.loras.split(",")) if each]


def _check_lora_name(model: str, lora: str, taken: set[str]) -> None:
    if not is_adapter_name(lora):
        raise InvalidRequest(f"--lora {lora}: the name of an adapter has {NAME_RULE}")
    check_name(f"{model}:{lora}")
    if f"{model}:{lora}" in taken:
        raise InvalidRequest(f"--lora {lora}: '{model}:{lora}' is the name of a model")


def _describe(
    describer: str,
    name: str,
    path: Path,
    checkpoint: Path,
    settings: Settings,
    components: Mapping[str, Path],
) -> AdapterSummary:
    module, _, function = describer.partition(":")
    describe = getattr(importlib.import_module(module), function)
    try:
        summary: AdapterSummary = describe(name, path, checkpoint, settings, components)
    except ServingError as error:
        raise InvalidRequest(f"--lora {name}: {error.message}") from error
    return summary
