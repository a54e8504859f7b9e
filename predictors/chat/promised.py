"""A pass that a chat model promises: one that is warmed before a request runs it, with its kind and
width.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple


class PassKind(Enum):
    """The part of the model that a pass runs, and what its width counts."""

    TOWER = "vision"
    """A graph of the vision tower, by patches."""
    PROBE = "probe"
    """A look at the vision tower, of no width: measures or checks it."""
    CHOICE = "choice"
    """A choice of tokens, by rows."""
    PROMPT = "prefill"
    """A pass over prompts, by tokens."""
    DECODE = "decode"
    """A decode step, by sequences."""


class PromisedPass(NamedTuple):
    kind: PassKind
    width: int
    name: str
    run: Callable[[], object]
    """Warms it. Engine thread."""
