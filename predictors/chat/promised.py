"""`PromisedPass`: a pass of a chat model that is warmed before a request runs it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple


class PassKind(Enum):
    """The part of the model that a pass runs, and what its width counts."""

    TOWER = "vision"
    """A graph of the vision tower, by patches."""
    PROBE = "probe"
    """A run of the vision tower that measures or checks it; it has no width."""
    CHOICE = "choice"
    """A choice of tokens, by rows."""
    PROMPT = "prefill"
    """A pass over prompts, by tokens."""
    MIXED = "mixed"
    """A pass over prompts beside the widest decode step, by tokens of prompts."""
    DECODE = "decode"
    """A decode step, by sequences."""


class PromisedPass(NamedTuple):
    kind: PassKind
    width: int
    name: str
    run: Callable[[], object]
    """Warms it. Engine thread."""
