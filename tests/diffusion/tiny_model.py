"""A flow-matching model that is as unlike FLUX as `DiffusionModel` allows, and small enough to
compute by hand: one text encoder, no pooled vector, no packing, patches of 8 pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from predictors.compute.device.placement import Placement
from predictors.diffusion.model import Embedding, LoadOptions, Prompt
from predictors.diffusion.sampling import Schedule

PATCH_PIXELS = 8
CHANNELS = 3


@dataclass(frozen=True, slots=True)
class TinyConfig:
    patch_pixels: int = PATCH_PIXELS
    sample_size: int = 32
    max_text_tokens: int = 8
    default_text_tokens: int = 4
    default_steps: int = 2
    default_guidance: float = 1.0
    is_quantized: bool = False
    kind: str = "text"
    has_encoder: bool = False


class TinyModel:
    """Implements `DiffusionModel`."""

    def __init__(self) -> None:
        self.config = TinyConfig()
        self.schedule = Schedule()

    def tokenize(self, text: str, num_tokens: int) -> Prompt:
        ids = list(text.encode())[:num_tokens]
        padded = ids + [0] * (num_tokens - len(ids))
        return Prompt((text, num_tokens), (torch.tensor([padded]),), len(ids))

    def draw_noise(self, seed: int, rows: int, columns: int) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(rows * columns, CHANNELS, generator=generator)

    def load(self, name: str, placement: Placement, options: LoadOptions) -> TinyPasses:
        return TinyPasses()


class TinyPasses:
    """Implements `DiffusionPasses`: the velocity is latents * timestep / 2000 + mean of context."""

    attention = "none"

    def encode(self, *ids: Tensor) -> tuple[Tensor, ...]:
        (only,) = ids
        return (only[0, :, None].float().expand(-1, CHANNELS) / 256,)

    def modulations(
        self, timesteps: Tensor, guidance: Tensor, prompts: Sequence[Embedding]
    ) -> Tensor:
        return timesteps[:, None, None].expand(-1, len(prompts), 1) / 1000

    def positions(
        self, num_text: int, rows: int, columns: int, reference: tuple[int, int] = (0, 0)
    ) -> Tensor:
        return torch.zeros(rows, columns)

    def velocity(self, form: str, *, is_promised: bool) -> Callable[..., Tensor]:
        return tiny_velocity

    def unpacked(self, latents: Tensor, rows: int, columns: int) -> Tensor:
        return latents.view(1, rows, columns, CHANNELS).permute(0, 3, 1, 2)

    def decoder(self, *, is_promised: bool) -> Callable[[Tensor], Tensor]:
        return tiny_decode


def tiny_velocity(
    latents: Tensor, context: Tensor, modulation: Tensor, positions: Tensor
) -> Tensor:
    assert positions.numel() == latents.shape[1]
    return latents * modulation[:, None] / 2 + context.mean(dim=1, keepdim=True)


def tiny_decode(latents: Tensor) -> Tensor:
    pixels = latents[0].permute(1, 2, 0)
    picture = pixels.repeat_interleave(PATCH_PIXELS, 0).repeat_interleave(PATCH_PIXELS, 1)
    levels = (picture.sigmoid() * 255).round().to(torch.uint8).flatten()
    return torch.cat((levels, picture.isfinite().all().to(torch.uint8)[None]))
