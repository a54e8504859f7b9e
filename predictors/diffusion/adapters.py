"""Adapters (LoRA) of a picture model: their weights, the linears that they change, and what one
picture gets of them.
"""

from __future__ import annotations

from typing import NamedTuple

from predictors.compute.low_rank import AdapterWeights, LowRank

__all__ = ["AdapterWeights", "LowRank"]

STEP, PICTURE, PROMPT = "step", "picture", "prompt"
"""When a linear runs: in every denoise step, once per picture, once per prompt."""


class AdapterPlace(NamedTuple):
    """The linear, and the part of its output, that one path of an adapter changes."""

    stage: str
    """One of `STEP`, `PICTURE`, `PROMPT`."""
    linear: str
    """The model's own name of the linear."""
    part: int
    """Its number among the parts of the linear, which read the same input."""
    begin: int
    """Its first output feature."""
    in_features: int
    out_features: int


class AppliedChange(NamedTuple):
    """The change of a linear outside of the step, for one prompt or picture."""

    place: AdapterPlace
    weights: LowRank
    scale: float


class AppliedAdapters(NamedTuple):
    """The adapters of one picture, by their names' order, without those of scale 0."""

    rows: tuple[int, ...] = ()
    """Their rank rows in the device tables."""
    scales: tuple[float, ...] = ()
    """The scale of each rank row."""
    width: int = 0
    """Rank rows of a pass: unused ones are row 0. 0 if no linear of the step changes."""
    prompt: tuple[AppliedChange, ...] = ()
    picture: tuple[AppliedChange, ...] = ()
    """`prompt` and `picture`: changes of the linears that run once per prompt or per picture."""
    prompt_key: tuple[tuple[str, float], ...] = ()
    """Digest and scale of each adapter that changes how a prompt is encoded."""


NO_ADAPTERS = AppliedAdapters()
