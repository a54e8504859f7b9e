"""Films as Qwen3-VL reads them: each step stands on its own, behind the text of its time."""

from __future__ import annotations

from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

from predictors.chat.template_checks import VIDEO_TOKEN
from predictors.chat.vision.films import (
    FRAMES,
    ROOM,
    FilmBounds,
    FilmPlan,
    FilmPreparation,
)

STEP = f"<|vision_start|>{VIDEO_TOKEN}<|vision_end|>"


class TimedFilms(FilmPreparation):
    """The processor's sizes are those of all frames together."""

    def _resized(self, frames: int, height: int, width: int, bounds: FilmBounds) -> tuple[int, int]:
        least = bounds.min_pixels * frames if bounds.min_pixels else self._least
        most = min(self._most, bounds.max_pixels * frames, bounds.total_pixels * FRAMES)
        factor, room = self.patch * self.merge, int(least * ROOM)
        resized = smart_resize(frames, height, width, FRAMES, factor, least, max(most, room))
        return int(resized[0]), int(resized[1])

    def telling(self, plan: FilmPlan) -> tuple[str, tuple[tuple[int, int], ...]]:
        times = [i / plan.facts.fps for i in plan.indices]
        times += times[-1:] * (FRAMES * plan.steps - len(times))
        means = ((times[i] + times[i + 1]) / 2 for i in range(0, len(times), FRAMES))
        text = "".join(f"<{mean:.1f} seconds>{STEP}" for mean in means)
        return text, ((1, 0),) * plan.steps
