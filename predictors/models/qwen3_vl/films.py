"""Films as Qwen3-VL reads them: each step stands on its own, behind the text of its time."""

from __future__ import annotations

from typing import Any

import numpy as np

from predictors.chat.template_checks import VIDEO_TOKEN
from predictors.chat.vision.films import (
    FRAMES,
    ROOM,
    FilmBounds,
    FilmPlan,
    FilmPreparation,
)
from predictors.chat.vision.pixels import fitted_film_size
from predictors.protocol.films.decode import FilmFacts

STEP = f"<|vision_start|>{VIDEO_TOKEN}<|vision_end|>"


class TimedFilms(FilmPreparation):
    """The processor's sizes are those of all frames together."""

    def _picked(
        self, picker: Any, facts: FilmFacts, count: int | None, fps: float | None
    ) -> tuple[int, ...]:
        """After `sample_frames` of transformers' `Qwen3VLVideoProcessor`."""
        fps = picker.fps if fps is None else fps
        if count is None and fps is not None:
            count = int(facts.frames / facts.fps * fps)
            count = min(max(count, picker.min_frames), picker.max_frames, facts.frames)
        if count is None:
            count = min(max(facts.frames, picker.min_frames), picker.max_frames)
        return tuple(np.linspace(0, facts.frames - 1, count).round().astype(int).tolist())

    def _resized(self, frames: int, height: int, width: int, bounds: FilmBounds) -> tuple[int, int]:
        least = bounds.min_pixels * frames if bounds.min_pixels else self._least
        most = min(self._most, bounds.max_pixels * frames, bounds.total_pixels * FRAMES)
        factor, room = self.patch * self.merge, int(least * ROOM)
        if frames < FRAMES:
            raise ValueError(f"{frames} frames are fewer than the {FRAMES} of a step")
        if height < factor or width < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        return fitted_film_size(frames, height, width, FRAMES, factor, least, max(most, room))

    def telling(self, plan: FilmPlan) -> tuple[str, tuple[tuple[int, float], ...]]:
        times = [i / plan.facts.fps for i in plan.indices]
        times += times[-1:] * (FRAMES * plan.steps - len(times))
        means = ((times[i] + times[i + 1]) / 2 for i in range(0, len(times), FRAMES))
        text = "".join(f"<{mean:.1f} seconds>{STEP}" for mean in means)
        return text, ((1, 0.0),) * plan.steps
