"""Label values and series that a text-to-image model adds to those of every model."""

from __future__ import annotations

from predictors import metrics
from predictors.diffusion.request import TIERS

SERIES = metrics.ModelSeries(
    operations=("infer", "images"),
    stages=("prepare", "text_encode", "denoise", "vae_decode", "image_encode"),
    caches=("prompt_embedding",),
    own={
        metrics.denoise_steps_total: ((),),
        metrics.image_pixels: ((),),
        metrics.inference_steps: ((),),
        metrics.ttfi_seconds: ((),),
        metrics.denoise_step_seconds: tuple((size,) for size in metrics.RESOLUTIONS),
        metrics.images_total: tuple((size, t) for size in metrics.RESOLUTIONS for t in TIERS),
    },
)
