"""The tables of a Qwen run that people read. Knows figures, floors and goals; measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.flux.report import columns
from benchmarks.qwen_vl import floors as qwen_vl_floors
from benchmarks.qwen_vl import goals as qwen_vl_goals
from benchmarks.qwen_vl.cases import Case

HEAD = (
    "server", "case", "requests", "TTFT p50", "p99", "TPOT mean", "p99", "ITL p99", "max",
    "req/s", "tok/s", "of floor",
)  # fmt: skip
SERVERS = {"http": "ours", "vllm": "vllm"}


def cases(found: Mapping[str, Any], part: str) -> dict[str, dict[str, Any]]:
    """The clients' cases of one part, by name."""
    return {name: row for name, row in found.get(part, {}).items() if _is_case(row)}


def _is_case(row: object) -> bool:
    return isinstance(row, dict) and "case" in row


def share_of_floor(row: Mapping[str, Any], ceilings: Mapping[str, Any]) -> float | None:
    """Of the requests per second that the card's best rates allow; None for what had no new
    prompt, whose floor is not the whole prompt's."""
    case = Case(**row["case"])
    if "requests_per_s" not in row or "copy_bytes_per_s" not in ceilings:
        return None
    if case.is_same or case.turns > 1:
        return None
    rates = qwen_vl_floors.Rates.of(ceilings)
    vision = case.pictures * qwen_vl_floors.vision_operations(*case.size) if case.size else 0.0
    prompt, answer = row["prompt_tokens_mean"], row["tokens_mean"]
    floor = qwen_vl_floors.requests_per_s(rates, case.clients, prompt, answer, vision)
    share: float = row["requests_per_s"] / floor
    return share


def clients_table(found: Mapping[str, Any]) -> str:
    """One line per server and case; milliseconds and rates."""
    lines = [HEAD]
    for part, server in SERVERS.items():
        for name, row in cases(found, part).items():
            share = share_of_floor(row, found.get("ceilings", {}))
            lines.append((server, name, *figures(row), "" if share is None else f"{share:.0%}"))
    return columns(lines)


def figures(row: Mapping[str, Any]) -> tuple[str, ...]:
    """As many cells as `HEAD` has between case and share."""
    if "requests_per_s" not in row:
        return ("FAILED", *[""] * 8)
    return (*latencies(row), f"{row['itl_ms_max']:.1f}", *rates(row))


def latencies(row: Mapping[str, Any]) -> tuple[str, ...]:
    """How many requests, first token p50 and p99, per token mean and p99, between tokens p99."""
    failed = f" ({row['failed']} failed)" if row["failed"] else ""
    return (
        f"{row['requests']}{failed}",
        f"{row['ttft_ms_p50']:.1f}",
        f"{row['ttft_ms_p99']:.1f}",
        f"{row['tpot_ms_mean']:.2f}",
        f"{row['tpot_ms_p99']:.2f}",
        f"{row['itl_ms_p99']:.1f}",
    )


def rates(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Requests and tokens per second."""
    return f"{row['requests_per_s']:.2f}", f"{row['tokens_per_s']:.0f}"


def goals_table(found: Mapping[str, Any]) -> str:
    """One line per goal, vLLM's figure on another card beside it."""
    lines = [("goal", "measured", "asked for", "held", "wished for", "held", "vLLM on an H100")]
    for goal in qwen_vl_goals.held(found):
        wish = goal["wish"]
        other = qwen_vl_goals.VLLM.get(goal["case"], {}).get(goal["figure"])
        lines.append(
            (
                f"{goal['case']}, {goal['figure']}",
                f"{goal['measured']:.4g}",
                f"at {goal['at']} {goal['limit']:g}",
                "yes" if goal["held"] else "NO",
                "" if wish is None else f"{wish:g}",
                "" if wish is None else ("yes" if goal["wish_held"] else "no"),
                "" if other is None else f"{other:g}",
            )
        )
    return columns(lines)


def as_text(found: Mapping[str, Any]) -> str:
    """All tables and what is missing."""
    return "\n\n".join(_pieces(found))


def _pieces(found: Mapping[str, Any]) -> Iterator[str]:
    if any(cases(found, part) for part in SERVERS):
        yield clients_table(found)
    if qwen_vl_goals.held(found):
        yield goals_table(found)
    if told := found.get("vllm", {}).get("was not"):
        yield f"vLLM was not measured: {told}"
    for name in found["left_out"]:
        yield f"left out: {name}"
    for name, error in found["failed"].items():
        yield f"FAILED {name}: {error}"
