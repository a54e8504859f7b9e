"""The forward passes: encode a prompt, begin a picture, one denoise step of several, decode one.
Knows tensors, shapes and compiled units; knows no job, no deadline and no wire.

Everything runs on the engine thread inside `torch.inference_mode`. No method changes a `Canvas`:
results are returned, and the engine commits them once the whole turn has succeeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from predictors.compute.compiling import compiled
from predictors.compute.device import Placement
from predictors.compute.transfer import HostCopy, to_device, to_host_async
from predictors.flux.modules.operations import Plain
from predictors.flux.modules.rotary import rotary_table
from predictors.flux.modules.transformer import EAGER, DoubleBlock, Ends, Passes, SingleBlock
from predictors.flux.sampling import Course, euler, guide, unpack
from predictors.flux.weights import Facts, Parts

PLAIN = Plain()
NUM_ROTARY_TABLES = 64  # 2 MB each at 1024x1024


@dataclass(frozen=True, slots=True)
class Embedding:
    """One encoded prompt: pooled (pooled_dim,), context (T, dim) after the context embedder."""

    pooled: Tensor
    context: Tensor

    @property
    def num_bytes(self) -> int:
        """Device memory it holds."""
        return self.pooled.nbytes + self.context.nbytes


@dataclass(slots=True)
class Canvas:
    """A picture in the making, on the device. `latents` and `index` are the only state."""

    latents: Tensor
    """(patches, channels)."""
    index: int
    """Steps taken."""
    context: Tensor
    """(rows, T, dim)."""
    modulation: Tensor
    """(steps, rows, modulation_dim)."""
    dts: Tensor
    """(steps,)."""
    cfg_scale: Tensor
    """() float32; read only with two rows."""
    rotary: Tensor
    shape: tuple[int, int, int]

    @property
    def num_rows(self) -> int:
        """Rows of a step it takes."""
        return self.context.shape[0]

    @property
    def is_finished(self) -> bool:
        """Whether only decoding is left."""
        return self.index == self.dts.shape[0]


class Runner:
    """One checkpoint's passes. `promised` are the (width, height) with compiled passes."""

    def __init__(
        self,
        facts: Facts,
        parts: Parts,
        placement: Placement,
        promised: Sequence[tuple[int, int]],
        num_tokens: int,
    ) -> None:
        self._facts = facts
        self._parts = parts
        self._placement = placement
        self._passes = Passes(
            double=compiled(DoubleBlock.forward, placement, "flux_double_block"),
            single=compiled(SingleBlock.forward, placement, "flux_single_block"),
            ends=compiled(Ends.forward, placement, "flux_ends"),
        )
        # aot_eager gives the decoder's group norm strides it then refuses (torch 2.11)
        can_compile = placement.compile == "inductor"
        self._develop: Callable[..., Tensor] = (
            compiled(develop, placement, "flux_vae_decode") if can_compile else develop
        )
        side = facts.patch_pixels
        self._promised = {(height // side, width // side) for width, height in promised}
        self._compiled = {(num_tokens, rows * columns) for rows, columns in self._promised}
        self._rotary = lru_cache(NUM_ROTARY_TABLES)(self._rotary_table)

    def encode(self, clip_ids: Tensor, t5_ids: Tensor) -> Embedding:
        """Both text encoders on one prompt, ids (1, n) on the host: always one row, so its bits
        know no neighbours."""
        place, dtype = self._placement, self._placement.dtype
        pooled = self._parts.clip(to_device(clip_ids, place)).pooler_output.to(dtype)
        states = self._parts.t5(to_device(t5_ids, place))[0].to(dtype)
        return Embedding(pooled[0], self._parts.conditioning.context(states)[0])

    def begin(self, course: Course, prompts: Sequence[Embedding]) -> Canvas:
        """Everything the steps of one picture have in common, and its noise."""
        place = self._placement
        context = torch.stack([prompt.context for prompt in prompts])
        shape = (context.shape[1], course.rows, course.columns)
        return Canvas(
            latents=to_device(course.noise, place, place.dtype),
            index=0,
            context=context,
            modulation=self._parts.conditioning.modulations(
                to_device(course.timesteps, place),
                to_device(course.guidance, place),
                torch.stack([prompt.pooled for prompt in prompts]),
            ),
            dts=to_device(course.dts, place),
            cfg_scale=to_device(course.cfg_scale, place),
            rotary=self._rotary(shape),
            shape=shape,
        )

    def denoise(self, canvases: Sequence[Canvas]) -> list[Tensor]:
        """The next latents (patches, channels) of each canvas; all have one shape.

        Launches only: no value is read back and nothing is uploaded.
        """
        first = canvases[0]
        latents = torch.cat([c.latents.expand(c.num_rows, -1, -1) for c in canvases])
        context = torch.cat([c.context for c in canvases])
        modulation = torch.cat([c.modulation[c.index] for c in canvases])
        num_tokens, rows, columns = first.shape
        passes = self._passes if (num_tokens, rows * columns) in self._compiled else EAGER
        velocity = self._parts.transformer(
            PLAIN, latents, context, modulation, first.rotary, passes
        )
        shares = velocity.split([c.num_rows for c in canvases])
        return [_advance(c, share) for c, share in zip(canvases, shares, strict=True)]

    def decode(self, canvas: Canvas) -> HostCopy:
        """Begin to decode a finished canvas; the copy's result is uint8 (height, width, 3)."""
        _, rows, columns = canvas.shape
        run = self._develop if (rows, columns) in self._promised else develop
        facts = self._facts
        latents = unpack(canvas.latents[None], rows, columns)
        latents = latents / facts.latent_scale + facts.latent_shift
        return to_host_async(run(self._parts.vae, latents))

    def _rotary_table(self, shape: tuple[int, int, int]) -> Tensor:
        axes = self._facts.shape.rotary_axes
        return to_device(rotary_table(*shape, axes), self._placement)


def develop(vae: Any, latents: Tensor) -> Tensor:
    """Latents (1, channels, h, w) to a uint8 picture (8h, 8w, 3), rounded as diffusers does."""
    picture = vae.decode(latents, return_dict=False)[0]
    picture = (picture * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).float()
    levels: Tensor = (picture * 255).round().to(torch.uint8)
    return levels.contiguous()


def _advance(canvas: Canvas, velocity: Tensor) -> Tensor:
    toward = velocity[0]
    if canvas.num_rows == 2:
        toward = guide(toward, velocity[1], canvas.cfg_scale)
    return euler(canvas.latents, toward, canvas.dts[canvas.index])
