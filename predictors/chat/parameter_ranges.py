"""The ranges of V2 parameters that hold for every chat model. Limits of a checkpoint or of a server
are the codec's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from predictors.chat.format_parameters import FORMAT_PARAMETERS
from predictors.chat.pixel_bounds import PixelLimits
from predictors.chat.request import Sampling
from predictors.chat.tools.tool_parameters import TOOL_PARAMETERS
from predictors.errors import InvalidRequest
from predictors.protocol.openai.chat_body import MAX_STOP_CHARS, MAX_STOPS, MAX_TOKENS, NO_LIMIT
from predictors.protocol.openai.coordinates import AS_SAID, COORDINATES
from predictors.protocol.openai.film_fields import (
    ALL_FRAMES,
    FRAME_FIELDS,
    MAX_FPS,
    MAX_FRAMES,
    MAX_TOTAL_PIXELS,
    RequestedFrames,
    read_frames,
)
from predictors.protocol.openai.json_texts import parse_json_text
from predictors.protocol.openai.pixel_fields import DETAILS, MAX_PIXELS
from predictors.protocol.openai.token_fields import TEXTS as TOKEN_TEXTS
from predictors.protocol.openai.token_fields import TOKEN_FIELDS
from predictors.protocol.seeds import SEED_SCHEMA
from predictors.protocol.v2.values import Parameters

MAX_STOPS_TEXT = 2**17  # characters: of the longest stop strings, most of them as escapes


def read_stops(raw: str | None) -> tuple[str, ...]:
    """The stop strings of a JSON list. Raises `InvalidRequest`."""
    if raw is None:
        return ()
    stops = parse_json_text("stop", raw, MAX_STOPS_TEXT, r'["\n"]')
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise InvalidRequest("stop must be a JSON list of strings that are not empty", param="stop")
    if len(stops) > MAX_STOPS or any(len(s) > MAX_STOP_CHARS for s in stops):
        limits = f"at most {MAX_STOPS} strings of {MAX_STOP_CHARS} characters"
        raise InvalidRequest(f"stop takes {limits}", param="stop")
    return tuple(stops)


def read_frame_parameters(parameters: Parameters) -> RequestedFrames:
    """The parameters of films. Raises `InvalidRequest` for some that contradict each other."""
    read: dict[str, Any] = {"fps": parameters.read_float("fps")}
    read |= {name: parameters.read_int(name) for name in FRAME_FIELDS if name != "fps"}
    for name, value in read.items():
        check_parameter(name, value)
    given = {name: value for name, value in read.items() if value is not None}
    return read_frames(given, "the parameters")


def check_parameter(name: str, value: float | None) -> None:
    """Raise `InvalidRequest` for a value that the parameter can't have; None is absent."""
    if value is not None:
        RANGES[name].check(name, value)


@dataclass(frozen=True, slots=True)
class NumberRange:
    """Numbers from `low` to `high`; `low` itself is left out with `is_above`. `or_value` is taken
    besides."""

    low: int
    high: int
    is_above: bool = False
    or_value: int | None = None
    is_whole: bool = False

    def check(self, name: str, value: float) -> None:
        is_low = value <= self.low if self.is_above else value < self.low
        if value != self.or_value and (is_low or value > self.high):
            raise InvalidRequest(f"{name} must be {self._span}, not {_shown(value)}", param=name)

    @property
    def _span(self) -> str:
        if self.is_above:
            return f"above {self.low} and at most {self.high}"
        also = "" if self.or_value is None else f", or {self.or_value}"
        return f"from {self.low} to {self.high}{also}"

    def schema(self) -> dict[str, Any]:
        """As JSON Schema."""
        least = "exclusiveMinimum" if self.is_above else "minimum"
        span = {least: self.low, "maximum": self.high}
        kind = "integer" if self.is_whole else "number"
        if self.or_value is None:
            return {"type": kind, **span}
        return {"type": kind, "anyOf": [span, {"const": self.or_value}]}


def _shown(value: float) -> str:
    # whole numbers may have a thousand digits, which no float has
    return str(value)[:32] if isinstance(value, int) else f"{value:g}"


RANGES: dict[str, NumberRange] = {
    "max_tokens": NumberRange(1, MAX_TOKENS, or_value=NO_LIMIT, is_whole=True),
    "temperature": NumberRange(0, 2),
    "top_p": NumberRange(0, 1, is_above=True),
    "top_k": NumberRange(-1, MAX_TOKENS, is_whole=True),
    "min_p": NumberRange(0, 1),
    "repetition_penalty": NumberRange(0, 100, is_above=True),
    "presence_penalty": NumberRange(-2, 2),
    "frequency_penalty": NumberRange(-2, 2),
    "min_pixels": NumberRange(1, MAX_PIXELS, is_whole=True),
    "max_pixels": NumberRange(1, MAX_PIXELS, is_whole=True),
    "fps": NumberRange(0, int(MAX_FPS), is_above=True),
    "num_frames": NumberRange(2, MAX_FRAMES, or_value=ALL_FRAMES, is_whole=True),
    "min_frames": NumberRange(1, MAX_FRAMES, is_whole=True),
    "max_frames": NumberRange(2, MAX_FRAMES, is_whole=True),
    "total_pixels": NumberRange(1, MAX_TOTAL_PIXELS, is_whole=True),
}


def parameter_schemas(
    defaults: Sampling, pixels: PixelLimits, max_tokens: int
) -> dict[str, dict[str, Any]]:
    """The V2 parameters of one model as JSON Schema, with its defaults and limits. `max_tokens` are
    those of a request that names none, 0 for what the context leaves."""
    found = {name: each.schema() for name, each in RANGES.items()}
    for name, value in asdict(defaults).items():
        found[name]["default"] = value
    found["max_tokens"]["default"] = max_tokens or NO_LIMIT
    for name, least, default in (
        ("min_pixels", 1, pixels.min_pixels),
        ("max_pixels", pixels.token_pixels, pixels.default_max_pixels),
    ):
        found[name] |= {"minimum": least, "maximum": pixels.max_pixels, "default": default}
    return found | {
        "loras": {"type": "string", "contentMediaType": "application/json", "default": "[]"},
        "detail": {"type": "string", "enum": list(DETAILS), "default": "auto", **_DETAIL},
        "coordinates": {"type": "string", "enum": list(COORDINATES), "default": AS_SAID},
        "seed": dict(SEED_SCHEMA),
        "stop": {"type": "string", "description": "A JSON list of strings."},
        "system_prompt": {"type": "string", "description": "A system message before the prompt."},
        "chat_template_kwargs": _JSON_TEXT,
        **FORMAT_PARAMETERS,
        **TOOL_PARAMETERS,
        **{name: dict(rule.schema) for name, rule in TOKEN_FIELDS.items()},
        **dict.fromkeys(TOKEN_TEXTS, _JSON_TEXT),
    }


_DETAIL = {"description": "How large pictures are read; `low` reads them small."}
_JSON_TEXT = {"type": "string", "contentMediaType": "application/json"}
