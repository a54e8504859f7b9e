"""Films as Qwen2.5-VL reads them: all steps are one run of tokens, and their distance in time is
part of the rotary positions.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

from predictors.chat.template_checks import VIDEO_TOKEN
from predictors.chat.vision.films import (
    FRAMES,
    ROOM,
    FilmBounds,
    FilmPlan,
    FilmPreparation,
)


class SpacedFilms(FilmPreparation):
    """`positions_per_second` is the config's `tokens_per_second`. The processor's sizes are those
    of one frame."""

    def __init__(self, videos: Any, positions_per_second: int) -> None:
        super().__init__(videos)
        self._positions_per_second = positions_per_second

    def _resized(self, frames: int, height: int, width: int, bounds: FilmBounds) -> tuple[int, int]:
        least = bounds.min_pixels or self._least
        most = min(self._most, bounds.max_pixels, bounds.total_pixels * FRAMES // frames)
        factor = self.patch * self.merge
        resized = smart_resize(height, width, factor, least, max(most, int(least * ROOM)))
        return int(resized[0]), int(resized[1])

    def telling(self, plan: FilmPlan) -> tuple[str, tuple[tuple[int, int], ...]]:
        # in 32 bits, and without what is left of a whole second, as transformers has it
        seconds = torch.tensor(FRAMES / plan.fps, dtype=torch.float32)
        return VIDEO_TOKEN, ((plan.steps, self._positions_per_second * int(seconds)),)
