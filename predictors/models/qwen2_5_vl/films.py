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
        """After `sample_frames` of transformers' `Qwen2VLVideoProcessor`, which picks whole steps,
        except where it fails: three frames of three, and an odd `min_frames`, of which it picks
        fewer. And of 17 frames it picks 15 for 14, the last of them behind the end, by rounding."""
        step, frames = picker.temporal_patch_size, facts.frames
        wanted: float = frames
        whole = math.floor(frames / step) * step
        if (count := picker.num_frames if count is None else count) is not None:
            wanted = min(round(count / step) * step, whole)
        elif (fps := picker.fps if fps is None else fps) is not None:
            least = math.ceil(max(picker.min_frames, 1) / step) * step
            most = min(math.floor(picker.max_frames / step) * step, whole)
            wanted = min(max(frames / facts.fps * fps, least), most)
            wanted = math.floor(wanted / step) * step
        return tuple(torch.arange(0, frames, frames / wanted).int().tolist()[: int(wanted)])

    def _resized(self, frames: int, height: int, width: int, bounds: FilmBounds) -> tuple[int, int]:
        least = bounds.min_pixels or self._least
        most = min(self._most, bounds.max_pixels, bounds.total_pixels * FRAMES // frames)
        factor = self.patch * self.merge
        return fitted_size(height, width, factor, least, max(most, int(least * ROOM)))

    def telling(self, plan: FilmPlan) -> tuple[str, tuple[tuple[int, float], ...]]:
        interval = np.float32(FRAMES / plan.fps) * np.float32(self._positions_per_second)
        return VIDEO_TOKEN, ((plan.steps, float(interval)),)  # in 32 bits, as transformers has it
