"""Shares one card among the picture and chat models of a process: their engines take turns, and the
models' parts of the memory are checked.

The check runs before torch is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from predictors.compute.checkpoint.summary import (
    CardFacts,
    FolderSummary,
    assignments,
    size_text,
)
from predictors.compute.watch.card_facts import find_card_facts
from predictors.settings import (
    FluxSettings,
    InvalidSetting,
    QwenVLSettings,
    Settings,
    variable_name,
)

if TYPE_CHECKING:
    from predictors.base import BasePredictor
    from predictors.compute.device.sharing import SharedCard

log = logging.getLogger("predictors")

KINDS = {"flux": "pictures", "qwen_vl": "tokens"}
"""The output of a task's engines, by the task."""
FRACTION = {
    group.section: variable_name(group, "memory_fraction")
    for group in (FluxSettings, QwenVLSettings)
}


def share_card(
    models: Sequence[BasePredictor[Any, Any, Any]], settings: Settings
) -> SharedCard | None:
    """Have the engines of all `models` take turns if there are both kinds; else None, and nothing
    changes."""
    if {model.task for model in models} != KINDS.keys():
        return None
    from predictors.compute.device.placement import place
    from predictors.compute.device.sharing import SharedCard

    card = SharedCard.of(settings.sharing, place(settings.compute))
    for model in models:
        model.share(card)
    names = ", ".join(model.name for model in models)
    log.info("%s share one card: sharing.policy is %s", names, card.policy.kind)
    return card


class Describe(Protocol):
    """Describes a checkpoint folder, see `describe_folder` in `predictors.__main__`."""

    def __call__(
        self,
        checkpoint: Path,
        settings: Settings,
        card: CardFacts | None,
        components: Mapping[str, Path] | None,
        /,
    ) -> FolderSummary: ...


def check_memory_shares(
    describe: Describe,
    named: Mapping[str, Path],
    settings: Settings,
    components: Mapping[str, Mapping[str, Path]],
    environ: Mapping[str, str],
) -> None:
    """Describe every model's folder, and compare the models' parts of the card's memory with each
    other and with what the models need.

    Raises `ServingError` for a folder that is not served, and `InvalidSetting` for parts that are
    more than the card, or for a model that needs more than its part.
    """
    found = {
        name: describe(folder, settings, None, components.get(name))
        for name, folder in named.items()
    }
    parts = {name: each.memory_fraction for name, each in found.items() if each.memory_fraction}
    if not parts:
        return
    # rounded: 0.7 and 0.3 are one card, whatever their sum in floating point
    if round(sum(parts.values()), 6) > 1:
        each = ", ".join(
            f"{name} {part:g} ({FRACTION[found[name].task]})" for name, part in parts.items()
        )
        raise InvalidSetting(
            f"the models' parts of the GPU's memory add up to {sum(parts.values()):g}, more than "
            f"1: {each}; lower them, or serve fewer models"
        )
    card = find_card_facts(settings.compute.device, environ)
    if card.memory_bytes is None:
        return
    for name in parts:
        summary = describe(named[name], settings, card, components.get(name))
        _check_part(name, summary, card.memory_bytes)


def _check_part(name: str, summary: FolderSummary, memory_bytes: int) -> None:
    chosen = next((option for option in summary.options if option.is_chosen), None)
    if chosen is None or chosen.fits is not False:
        return
    part = summary.memory_fraction
    needed = max(chosen.total_bytes, chosen.loading_bytes)
    others = [f"set {assignments(o.settings)}" for o in summary.options if o.fits]
    advice = chosen.advice or next(iter(others), "") or "take a larger card"
    raise InvalidSetting(
        f"{name} needs {size_text(needed)} as {chosen.name}, and {FRACTION[summary.task]} {part:g} "
        f"of {size_text(memory_bytes)} is {size_text(int(part * memory_bytes))}; raise it, or "
        f"{advice}"
    )
