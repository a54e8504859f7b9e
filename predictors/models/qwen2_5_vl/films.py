"""Films as Qwen2.5-VL reads them: all steps are one run of tokens, and their distance in time is
part of the rotary positions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from predictors.chat.template_checks import VIDEO_TOKEN
from predictors.chat.vision.films import (
    FRAMES,
    ROOM,
    FilmBounds,
    FilmPlan,
    FilmPreparation,
)
from predictors.chat.vision.pixels import fitted_size
from predictors.protocol.films.decode import FilmFacts


class SpacedFilms(FilmPreparation):
    """`positions_per_second` is the config's `tokens_per_second`. The processor's sizes are those
    of one frame."""

    def __init__(self, videos: Any, positions_per_second: int) -> None:
        super().__init__(videos)
        self._positions_per_second = positions_per_second

    def _picked(
        self, picker: Any, facts: FilmFacts, count: int | None, fps: float | None
    ) -> tuple[int, ...]:
        """After `sample_frames` of transformers' `Qwen2VLVideoProcessor`."""
        step, frames = picker.temporal_patch_size, facts.frames
        wanted: float = frames
        if (count := picker.num_frames if count is None else count) is not None:
            wanted = round(count / step) * step
        elif (fps := picker.fps if fps is None else fps) is not None:
            most = math.floor(min(picker.max_frames, frames) / step) * step
            wanted = min(max(frames / facts.fps * fps, picker.min_frames), most, frames)
            wanted = math.floor(wanted / step) * step
        if not 0 < wanted <= frames:
            raise ValueError(f"{wanted} frames can't be picked of {frames}")
        return tuple(torch.arange(0, frames, frames / wanted).int().tolist())

    def _resized(self, frames: int, height: int, width: int, bounds: FilmBounds) -> tuple[int, int]:
        least = bounds.min_pixels or self._least
        most = min(self._most, bounds.max_pixels, bounds.total_pixels * FRAMES // frames)
        factor = self.patch * self.merge
        return fitted_size(height, width, factor, least, max(most, int(least * ROOM)))

    def telling(self, plan: FilmPlan) -> tuple[str, tuple[tuple[int, float], ...]]:
        interval = np.float32(FRAMES / plan.fps) * np.float32(self._positions_per_second)
        return VIDEO_TOKEN, ((plan.steps, float(interval)),)  # in 32 bits, as transformers has it
