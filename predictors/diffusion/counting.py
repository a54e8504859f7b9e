"""Counts an engine's steps, stages, pictures and look-ups of its cache in the metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence

from predictors import metrics
from predictors.diffusion.scheduling import DiffusionJob, Slot


class PictureCounts:
    """Counts for the model `name`. Engine thread only."""

    def __init__(self, name: str) -> None:
        self._name = name

    def count_step(self, group: Sequence[Slot]) -> None:
        """Count a launched denoise step, and the denoise stage of each picture that it ends."""
        if group:
            metrics.denoise_steps_total.labels(self._name).inc(len(group))
            metrics.batch_size.labels(self._name).observe(len(group))
        for slot in group:
            if slot.is_finished:
                steps = slot.job.work.plan.num_steps
                seconds = time.monotonic() - slot.started_at
                self.add_stage(slot.job, "denoise", seconds, steps=steps)

    def count_picture(self, slot: Slot) -> None:
        """Count a picture. To be called before its caller can see it."""
        job, request = slot.job, slot.job.work.request
        metrics.images_total.labels(self._name, slot.resolution, request.tier).inc()
        metrics.image_pixels.labels(self._name).observe(request.width * request.height)
        metrics.inference_steps.labels(self._name).observe(request.num_inference_steps)
        seconds = job.clock() - job.submitted_at
        metrics.ttfi_seconds.labels(self._name).observe(seconds, job.exemplar)

    def count_lookup(self, result: str) -> None:
        """Count a look-up of an embedding: `result` is one of `metrics.CACHE_RESULTS`."""
        metrics.cache_requests_total.labels(self._name, "prompt_embedding", result).inc()

    def add_stage(self, job: DiffusionJob, stage: str, seconds: float, **attributes: int) -> None:
        """Record a stage of `job` that ends now."""
        job.add_stage(stage, seconds, **attributes)
        metrics.stage_seconds.labels(self._name, stage).observe(seconds, job.exemplar)
