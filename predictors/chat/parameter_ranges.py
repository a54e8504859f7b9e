"""The ranges of V2 parameters that hold for every chat model. Limits of a checkpoint or of a server
are the codec's."""

from __future__ import annotations

import json
from collections.abc import Callable

from predictors.errors import InvalidRequest
from predictors.protocol.openai.chat_body import MAX_STOP_CHARS, MAX_STOPS, MAX_TOKENS
from predictors.protocol.openai.pixel_fields import MAX_PIXELS


def read_stops(raw: str | None) -> tuple[str, ...]:
    """The stop strings of a JSON list."""
    if raw is None:
        return ()
    try:
        stops = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest('stop must be a JSON list, such as ["\\n"]', param="stop") from error
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise InvalidRequest("stop must be a JSON list of strings that are not empty", param="stop")
    if len(stops) > MAX_STOPS or any(len(s) > MAX_STOP_CHARS for s in stops):
        limits = f"at most {MAX_STOPS} strings of {MAX_STOP_CHARS} characters"
        raise InvalidRequest(f"stop takes {limits}", param="stop")
    return tuple(stops)


def check_parameter(name: str, value: float | None) -> None:
    """Raise `InvalidRequest` for a value that the parameter can't have; None is absent."""
    if value is not None:
        RANGES[name](name, value)


def _within(low: float, high: float) -> Callable[[str, float], None]:
    def rule(name: str, value: float) -> None:
        if not low <= value <= high:
            span = f"from {_shown(low)} to {_shown(high)}"
            raise InvalidRequest(f"{name} must be {span}, not {_shown(value)}", param=name)

    return rule


def _above(low: float, high: float) -> Callable[[str, float], None]:
    def rule(name: str, value: float) -> None:
        if not low < value <= high:
            span = f"above {_shown(low)} and at most {_shown(high)}"
            raise InvalidRequest(f"{name} must be {span}, not {_shown(value)}", param=name)

    return rule


def _shown(value: float) -> str:
    # whole numbers may have a thousand digits, which no float has
    return str(value)[:32] if isinstance(value, int) else f"{value:g}"


RANGES: dict[str, Callable[[str, float], None]] = {
    "max_tokens": _within(1, MAX_TOKENS),
    "temperature": _within(0, 2),
    "top_p": _above(0, 1),
    "top_k": _within(-1, MAX_TOKENS),
    "repetition_penalty": _above(0, 100),
    "presence_penalty": _within(-2, 2),
    "frequency_penalty": _within(-2, 2),
    "min_pixels": _within(1, MAX_PIXELS),
    "max_pixels": _within(1, MAX_PIXELS),
}
