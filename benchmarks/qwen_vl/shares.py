"""Shares of a card's floors that the clients of a run got."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.qwen_vl.cases import Case
from benchmarks.qwen_vl.floors import ModelFloors, Rates
from benchmarks.qwen_vl.sizes import size_of

Found = Mapping[str, Any]


def share_of_floor(row: Mapping[str, Any], found: Found) -> float | None:
    """Of the requests per second that the card's best rates allow. None where prompts repeat: their
    floor is not that of a new prompt."""
    case, ceilings = Case(**row["case"]), found.get("ceilings", {})
    if "requests_per_s" not in row or "copy_bytes_per_s" not in ceilings:
        return None
    if case.is_same or case.turns > 1:
        return None
    rates, floors = Rates.of(ceilings), floors_of(found)
    vision = case.pictures * floors.vision_operations(*case.size) if case.size else 0.0
    prompt, answer = row["prompt_tokens_mean"], row["tokens_mean"]
    floor = floors.requests_per_s(rates, case.clients, prompt, answer, vision)
    share: float = row["requests_per_s"] / floor
    return share


def floors_of(found: Found) -> ModelFloors:
    """Of the size that the run measured, full also for a toy."""
    return ModelFloors.of(size_of(found).full)


def decode_share(row: Mapping[str, Any], found: Found) -> float | None:
    """Of the bandwidth's floor of a decode step, as clients see it: that floor over the median time
    between texts."""
    ceilings, gap_ms = found.get("ceilings", {}), row.get("itl_ms_p50")
    if "copy_bytes_per_s" not in ceilings or not gap_ms:
        return None
    clients = Case(**row["case"]).clients
    tokens = row["prompt_tokens_mean"] + row["tokens_mean"] / 2
    share: float = floors_of(found).decode_ms(Rates.of(ceilings), clients, tokens) / gap_ms
    return share


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
