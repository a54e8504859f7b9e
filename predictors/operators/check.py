"""The verb `check`: a report of one checkpoint folder as plain values, with stable keys. Imports no
torch, so that it takes a fraction of a second for a folder of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from predictors.compute.checkpoint.integrity import VerifiedFolder
from predictors.compute.checkpoint.summary import (
    AdapterSummary,
    CardFacts,
    FolderSummary,
    PartSummary,
    ServingOption,
    stored_parts,
)
from predictors.errors import ServingError

SERVED, REFUSED, TOO_LARGE = 0, 2, 3
"""Exit codes: served; not served; served, but it does not fit into the memory."""


def check_report(
    folder: Path,
    architecture: str,
    summarise: Callable[[], FolderSummary],
    verify: Callable[[], Sequence[VerifiedFolder]],
    card: CardFacts,
) -> dict[str, Any]:
    """The values that `check --json` prints. `summarise` describes the folder and `verify` compares
    it with recorded digests; both raise with the message of a start."""
    report: dict[str, Any] = {
        "folder": folder.resolve().name,
        "architecture": architecture,
        "served": False,
        "reason": "",
        "task": "",
        "parts": [],
        "card": {
            "name": card.name,
            "memory_bytes": card.memory_bytes,
            "has_fp8": card.has_fp8,
            "memory_fraction": 0.0,
        },
        "fits": None,
        "options": [],
        "notes": [],
        "verified": [],
        "loras": [],
    }
    try:
        summary = summarise()
        report["verified"] = [_verified(folder) for folder in verify()]
    except ServingError as error:
        parts = [_part(part) for part in stored_parts(folder)]
        return report | {"reason": error.message, "parts": parts}
    chosen = next((option for option in summary.options if option.is_chosen), None)
    return report | {
        "architecture": summary.architecture,
        "served": True,
        "task": summary.task,
        "parts": [_part(part) for part in summary.parts],
        "card": report["card"] | {"memory_fraction": summary.memory_fraction},
        "fits": None if chosen is None else chosen.fits,
        "options": [
            _option(option, card.within(summary.memory_fraction)) for option in summary.options
        ],
        "notes": list(summary.notes),
    }


def check_lora(name: str, describe: Callable[[], AdapterSummary]) -> dict[str, Any]:
    """An adapter's entry in `loras` of the report; `describe` raises with the message of a
    start."""
    entry: dict[str, Any] = {"name": name, "served": False, "reason": ""}
    try:
        found = describe()
    except ServingError as error:
        return entry | {"reason": error.message}
    return entry | {
        "served": True,
        "file": found.file,
        "format": found.format,
        "digest": found.digest,
        "rank": found.rank,
        "linears": dict(found.linears),
        "values": found.num_values,
    }


def exit_code(report: dict[str, Any]) -> int:
    if not report["served"] or not all(lora["served"] for lora in report["loras"]):
        return REFUSED
    return TOO_LARGE if report["fits"] is False else SERVED


def _part(part: PartSummary) -> dict[str, Any]:
    return {
        "name": part.name,
        "class": part.kind,
        "parameters": part.parameters,
        "stored_bytes": part.num_bytes,
        "stored_values": dict(part.dtypes),
        "quantisation": part.quantisation,
    }


def _verified(folder: VerifiedFolder) -> dict[str, Any]:
    return {
        "folder": folder.folder,
        "source": folder.source,
        "files": folder.num_files,
        "bytes": folder.num_bytes,
        "seconds": round(folder.seconds, 3),
    }


def _option(option: ServingOption, card: CardFacts) -> dict[str, Any]:
    needed = max(option.total_bytes, option.loading_bytes)
    is_short = option.fits is False and card.memory_bytes is not None
    return {
        "name": option.name,
        "settings": dict(option.settings),
        "chosen": option.is_chosen,
        "refused": option.refused,
        "fits": option.fits,
        "needed_bytes": needed,
        "short_bytes": max(0, needed - (card.memory_bytes or 0)) if is_short else 0,
        "bytes": dict(option.num_bytes),
        "advice": option.advice,
        "detail": dict(option.detail),
    }
