"""Latencies of streamed answers as clients see them, and their summary per case. TTFT is the time
from sending the request to its first text. TPOT is the time from the first to the last text per
token after the first; token counts are the server's, so a token without text counts too. ITL is the
time between neighbouring pieces of text, however many tokens a piece has.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from predictors.cli.bench.intervals import quantile


@dataclass(slots=True)
class Answered:
    """One request as its client saw it; times are seconds of the machine's monotonic clock."""

    sent: float
    texts: list[float] = field(default_factory=list)
    """When each piece of text came."""
    ended: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0
    turn: int = 0
    """0 begins a conversation."""
    is_constrained: bool = False
    """Held to a grammar."""
    error: str | None = None
    id: str = ""
    """The server's id of the answer; empty without one."""

    @property
    def ttft_ms(self) -> float:
        """From sending to the first text."""
        return 1e3 * (self.texts[0] - self.sent)

    @property
    def tpot_ms(self) -> float | None:
        """Per token after the first; None where there is one token only."""
        if self.tokens < 2:
            return None
        return 1e3 * (self.texts[-1] - self.texts[0]) / (self.tokens - 1)

    @property
    def gaps_ms(self) -> list[float]:
        """Between neighbouring pieces of text."""
        return [1e3 * (b - a) for a, b in zip(self.texts, self.texts[1:], strict=False)]


def summed_up(answers: Sequence[Answered]) -> dict[str, Any]:
    """All figures of one case; rates are over the time from the first sending to the last end."""
    good = [answer for answer in answers if answer.error is None and answer.texts]
    found: dict[str, Any] = {
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "errors": sorted({a.error for a in answers if a.error is not None})[:3],
    }
    if not good:
        return found
    seconds = max(a.ended for a in good) - min(a.sent for a in good)
    tpot = _tpot(good)
    gaps = [gap for a in good for gap in a.gaps_ms]
    return found | {
        "seconds": seconds,
        "requests_per_s": len(good) / seconds,
        "tokens_per_s": sum(a.tokens for a in good) / seconds,
        **_ttft("ttft", good),
        **(_ttft("later_ttft", [a for a in good if a.turn]) if any(a.turn for a in good) else {}),
        "tpot_ms_mean": statistics.fmean(tpot) if tpot else None,
        **(_constrained(good) if any(a.is_constrained for a in good) else {}),
        "tpot_ms_p99": quantile(tpot, 0.99),
        "itl_ms_p50": quantile(gaps, 0.50),
        "itl_ms_p99": quantile(gaps, 0.99),
        "itl_ms_max": max(gaps, default=None),
        "prompt_tokens_mean": statistics.fmean(a.prompt_tokens for a in good),
        "tokens_mean": statistics.fmean(a.tokens for a in good),
        "texts_mean": statistics.fmean(len(a.texts) for a in good),
    }


def energy_of(answers: Sequence[Answered], joules: float | None) -> dict[str, float]:
    """Energy of the card per answer and per 1,000 tokens written; empty if it is not known. Prompts
    and pictures are read with it, and failed requests take of it too."""
    good = [answer for answer in answers if answer.error is None and answer.texts]
    tokens = sum(answer.tokens for answer in good)
    if joules is None or not tokens:
        return {}
    return {
        "joules_per_request": joules / len(good),
        "joules_per_1000_tokens": 1000 * joules / tokens,
    }


def _tpot(answers: Sequence[Answered]) -> list[float]:
    return [a.tpot_ms for a in answers if a.tpot_ms is not None]


def _constrained(answers: Sequence[Answered]) -> dict[str, Any]:
    """The mean TPOT of those held to a grammar, and of the others."""
    held = _tpot([a for a in answers if a.is_constrained])
    free = _tpot([a for a in answers if not a.is_constrained])
    return {
        "constrained_tpot_ms_mean": statistics.fmean(held) if held else None,
        "free_tpot_ms_mean": statistics.fmean(free) if free else None,
    }


def _ttft(name: str, answers: Sequence[Answered]) -> dict[str, Any]:
    times = [a.ttft_ms for a in answers]
    return {
        f"{name}_ms_mean": statistics.fmean(times),
        f"{name}_ms_p50": quantile(times, 0.50),
        f"{name}_ms_p99": quantile(times, 0.99),
    }
