"""The adapters (LoRA) that a command line and the settings name: of which model each is, and a look
at each file before torch is imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from predictors.cli.arguments import named_paths
from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.errors import InvalidRequest, ServingError
from predictors.protocol.names import check_name, read_aliases
from predictors.protocol.openai.lora_fields import NAME_RULE, is_adapter_name
from predictors.settings import Settings


@dataclass(frozen=True, slots=True)
class GivenAdapters:
    paths: Mapping[str, Mapping[str, Path]]
    """By model and adapter."""
    looks: Mapping[tuple[str, str], Callable[[], AdapterSummary]]
    """By model and adapter: describes it as a start would load it, or raises `ServingError` with
    the start's own message."""


def find_adapters(
    flags: Sequence[str],
    named: Mapping[str, Path],
    settings: Settings,
    describers: Mapping[str, str],
    components: Mapping[str, Mapping[str, Path]],
) -> GivenAdapters:
    """The adapters of `--lora` and `server.loras` for the models with the folders `named`.

    `describers` are the functions (`module:function`) that describe an adapter, by the models that
    take any; `components` folders of parts that replace a model's own. Raises `InvalidRequest` for
    a name that is not allowed, or that a model has.
    """
    paths = named_loras([*_listed(settings), *flags], list(describers))
    taken = {*named, *read_aliases(settings.server.aliases)}
    looks = {}
    for model, own in paths.items():
        for lora, path in own.items():
            _check_lora_name(model, lora, taken)
            looks[model, lora] = partial(
                _describe, describers[model], lora, path, named[model], settings,
                components.get(model) or {},
            )  # fmt: skip
    return GivenAdapters(paths, looks)


def with_loras(settings: Settings, flags: Sequence[str]) -> Settings:
    """The settings with room for as many adapters as are given, unless they say how many."""
    given = len(flags) + len(_listed(settings))
    if not given or settings.flux.lora_max_active:
        return settings
    return replace(settings, flux=replace(settings.flux, lora_max_active=given))


def named_loras(flags: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, Path]]:
    """The paths of `NAME=PATH` or `MODEL:NAME=PATH` by model and adapter; `models` are those that
    take adapters. Raises `InvalidRequest` as `named_paths`, and where the model is not clear."""
    found: dict[str, dict[str, Path]] = {}
    for given, path in named_paths(flags, "--lora").items():
        model, _, name = given.rpartition(":")
        if not models:
            raise InvalidRequest(f"--lora {given}: no model here takes adapters")
        if not model and len(models) != 1:
            raise InvalidRequest(f"--lora {given}: of which model? Write MODEL:{name}=PATH")
        model = model or models[0]
        if model not in models:
            raise InvalidRequest(
                f"--lora {given}: there is no --model {model} that takes adapters; there is "
                f"{', '.join(models)}"
            )
        if name in found.setdefault(model, {}):
            raise InvalidRequest(f"--lora {name} is given twice for {model}")
        found[model][name] = path
    return found


def _listed(settings: Settings) -> list[str]:
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
