"""The forward passes: encode a prompt, begin a picture, one denoise step of several, decode one.
Knows tensors, shapes, compiled units and graphs; knows no job, no deadline and no wire.

On a GPU a step of a promised shape is one CUDA graph of fused operations; on the CPU it is plain
torch, or compiled block by block. Everything runs on the engine thread inside
`torch.inference_mode`. No method changes a `Canvas`: results are returned, and the engine commits
them once the whole turn has succeeded.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from predictors.compute.compile.compiling import compiled
from predictors.compute.device.graphs import Captured, Graphs
from predictors.compute.device.pacing import StepPacer
from predictors.compute.device.placement import Placement
from predictors.compute.device.transfer import to_device, to_host_async
from predictors.compute.kernels.attention import choose_attention, fp8_attention
from predictors.compute.profiling.profiler import staged
from predictors.diffusion.latents import Canvas, Developing, Embedding, Step, StepShape, advanced
from predictors.diffusion.request import BASE, FP8
from predictors.diffusion.sampling import Course, unpack
from predictors.models.flux.config import Facts
from predictors.models.flux.modules import decoder as decoding
from predictors.models.flux.modules.operations import Operations, Plain, PlainFp8
from predictors.models.flux.modules.rotary import rotary_table
from predictors.models.flux.modules.text_encoders import clip_pooled, t5_states
from predictors.models.flux.modules.transformer import EAGER, DoubleBlock, Ends, Passes, SingleBlock
from predictors.models.flux.weights import Parts

log = logging.getLogger(__name__)

NUM_ROTARY_TABLES = 64  # 2 MB each at 1024x1024
NUM_TIMED = 3


class Runner:
    """One checkpoint's passes. `promised` are the (width, height) with compiled passes."""

    def __init__(
        self,
        model: str,
        facts: Facts,
        parts: Parts,
        placement: Placement,
        promised: Sequence[tuple[int, int]],
        num_tokens: int,
        max_rows: int,
        narrows_attention: bool = True,
    ) -> None:
        self._model = model
        self._facts = facts
        self._parts = parts
        self._placement = placement
        self._num_tokens = num_tokens
        side = facts.patch_pixels
        self._promised = {(height // side, width // side) for width, height in promised}
        self._max_rows = max_rows
        self._graphs = Graphs(model, placement)
        self.attention = "sdpa"
        self._steps: dict[tuple[int, int, str, int], Callable[..., Tensor]] = {}
        self._encoders: dict[tuple[int, int], Captured[tuple[Tensor, Tensor]]] = {}
        self._developers: dict[tuple[int, int], Callable[..., Tensor]] = {}
        self.widths: dict[StepShape, int] = {}
        self._is_sealed = False
        self._is_measured = placement.is_cuda  # elsewhere the time is no measure: cores are shared
        self._rotary = lru_cache(NUM_ROTARY_TABLES)(self._rotary_table)
        self._operations: Mapping[str, Operations] = {BASE: Plain(), FP8: PlainFp8()}
        self._decoding: decoding.Operations = decoding.PLAIN
        if placement.is_cuda:
            self._use_fused_operations(narrows_attention)
        self._passes = EAGER if placement.is_cuda else _compiled_passes(placement)
        # aot_eager gives the decoder's group norm strides it then refuses (torch 2.11)
        can_compile = placement.compile == "inductor" and not placement.is_cuda
        develop = decoding.develop_checked
        self._develop = compiled(develop, placement, "flux_decoder") if can_compile else develop

    def _use_fused_operations(self, narrows_attention: bool) -> None:
        from predictors.models.flux.modules.decoder_fused import (
            Fused as FusedDecoding,  # needs Triton
        )
        from predictors.models.flux.modules.fused import Fused, FusedFp8

        shape = self._facts.shape
        largest = max((rows * columns for rows, columns in self._promised), default=1)
        choice = choose_attention(
            self._placement, shape.num_heads, shape.head_dim, self._num_tokens + largest
        )
        choice.announce(self._model)
        self.attention = choice.name
        narrow = fp8_attention(self._placement, shape.head_dim) if narrows_attention else None
        log.info(
            "%s: attention of fp8 weights in %s", self._model, "fp8" if narrow else "their own"
        )
        self._operations = {
            BASE: Fused(choice.attention),
            FP8: FusedFp8(choice.attention, narrow),
        }
        self._decoding = FusedDecoding(self._parts.decoder)

    # -- a picture's way ------------------------------------------------------------------------
    @staged("text_encode")
    def encode(self, clip_ids: Tensor, t5_ids: Tensor) -> Embedding:
        """Both text encoders on one prompt, ids (1, n) on the host: always one row, so its bits
        know no neighbours."""
        place = self._placement
        ids = (to_device(clip_ids, place), to_device(t5_ids, place))
        key = (clip_ids.shape[1], t5_ids.shape[1])
        run: Callable[..., tuple[Tensor, Tensor]] = self._encoders.get(key, self._encode)
        if key not in self._encoders and self._captures and key[1] == self._num_tokens:
            run = self._encoders[key] = self._graphs.capture(self._encode, ids, "text encoders")
        # a graph's results hold until the next replay only
        return Embedding(*(result.clone() for result in run(*ids)))

    def _encode(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        dtype, parts = self._placement.dtype, self._parts
        pooled = clip_pooled(parts.clip, clip_ids)[0].to(dtype)
        states = t5_states(parts.t5, t5_ids)[0].to(dtype)
        return pooled, parts.conditioning.context(states)

    def begin(self, course: Course, prompts: Sequence[Embedding], form: str) -> Canvas:
        """Everything the steps of one picture have in common, and its noise."""
        place = self._placement
        context = torch.stack([prompt.context for prompt in prompts])
        shape = (context.shape[1], course.rows, course.columns, form)
        return Canvas(
            latents=to_device(course.noise, place, place.dtype),
            velocity=None,
            index=0,
            context=context,
            modulation=self._parts.conditioning.modulations(
                to_device(course.timesteps, place),
                to_device(course.guidance, place),
                torch.stack([prompt.pooled for prompt in prompts]),
            ),
            dts=to_device(course.dts, place),
            coefficients=to_device(course.coefficients, place),
            is_exact=course.is_exact,
            cfg_scale=to_device(course.cfg_scale, place),
            rotary=self._rotary(shape[:3]),
            shape=shape,
        )

    @staged("denoise_step")
    def denoise(self, canvases: Sequence[Canvas], width: int = 0) -> list[Step]:
        """What each canvas is after its next computed step; all have one shape.

        `width` rows share a pass, or as many as `self.width` says. Launches only: no value is read
        back and nothing is uploaded.
        """
        first = canvases[0]
        latents = torch.cat([c.latents.expand(c.num_rows, -1, -1) for c in canvases])
        context = torch.cat([c.context for c in canvases])
        modulation = torch.cat([c.modulation[c.index] for c in canvases])
        width = width or self.width(first.shape)
        shares = zip(*(x.split(width) for x in (latents, context, modulation)), strict=True)
        velocity = torch.cat([self._velocity(first, *share) for share in shares])
        each = velocity.split([c.num_rows for c in canvases])
        return [advanced(c, share) for c, share in zip(canvases, each, strict=True)]

    @staged("vae_decode")
    def decode(self, canvas: Canvas) -> Developing:
        """Begin to decode a finished canvas. Launches only."""
        _, rows, columns, _ = canvas.shape
        facts = self._facts
        latents = unpack(canvas.latents[None], rows, columns)
        latents = latents / facts.latent_scale + facts.latent_shift
        copy = to_host_async(self._developer(rows, columns, latents)(latents))
        side = facts.patch_pixels
        return Developing(copy, rows * side, columns * side)

    # -- widths ---------------------------------------------------------------------------------
    def width(self, shape: StepShape) -> int:
        """Rows that share a pass of this shape."""
        largest = self.largest_width(shape[3])
        return min(largest, self.widths.get(shape, 1)) if self._is_measured else largest

    def largest_width(self, form: str) -> int:
        """Rows that may ever share a pass.

        On a GPU a row's bits depend on its company, so the exact weights take one at a time there;
        from 512x512 on that costs nothing, since one picture fills the device.
        """
        return 1 if self._is_measured and form == BASE else self._max_rows

    def seconds_per_pass(self, canvases: Sequence[Canvas]) -> float:
        """Device seconds of a step in which all `canvases` share one pass, warmed before; 0 where
        widths are not measured. Waits for the device: while warming only."""
        if not self._is_measured:
            return 0.0
        pace = StepPacer(self._placement)
        for _ in range(NUM_TIMED):
            with pace.step(""):
                self.denoise(canvases, sum(canvas.num_rows for canvas in canvases))
        return statistics.median(done.seconds for done in pace.wait(ahead=1))

    def seal(self, widths: Mapping[StepShape, int]) -> None:
        """Serve with these widths; whatever is not captured by now never will be."""
        self.widths = dict(widths)
        patches = {
            (t, rows * columns, form): width for (t, rows, columns, form), width in widths.items()
        }
        self._steps = {
            key: run for key, run in self._steps.items() if key[3] <= patches.get(key[:3], 1)
        }
        self._graphs.seal()
        self._is_sealed = True

    @property
    def captures_after_ready(self) -> int:
        """Graphs that were captured after `seal`. Any thread."""
        return self._graphs.count_after_ready

    def close(self) -> None:
        """Give the graphs back."""
        self._graphs.close()

    # -- passes ---------------------------------------------------------------------------------
    def _velocity(
        self, canvas: Canvas, latents: Tensor, context: Tensor, modulation: Tensor
    ) -> Tensor:
        num_text, rows, columns, form = canvas.shape
        inputs = (latents, context, modulation, canvas.rotary)
        # a step sees how many patches there are; how they are arranged, the rotary table says
        key = (num_text, rows * columns, form, latents.shape[0])
        captured = self._steps.get(key)
        if captured is None and self._captures and self._is_promised(canvas.shape):
            captured = self._steps[key] = self._graphs.capture(
                self._pass(canvas.shape), inputs, f"step of {key}"
            )
        if captured is None:
            return self._pass(canvas.shape)(*inputs)
        return captured(*inputs).clone()  # a graph's result holds until the next replay only

    def _pass(self, shape: StepShape) -> Callable[..., Tensor]:
        passes = self._passes if self._is_promised(shape) else EAGER
        return partial(self._parts.transformers[shape[3]], self._operations[shape[3]], passes)

    def _developer(self, rows: int, columns: int, latents: Tensor) -> Callable[..., Tensor]:
        is_promised = (rows, columns) in self._promised
        develop = self._develop if is_promised else decoding.develop_checked
        run = self._developers.get((rows, columns))
        if run is None:
            run = partial(develop, self._parts.decoder, operations=self._decoding)
            if self._captures and is_promised:
                run = self._graphs.capture(run, (latents,), f"decode {rows}x{columns}")
                self._developers[rows, columns] = run
        return run

    @property
    def _captures(self) -> bool:
        can = self._placement.is_cuda and self._placement.compile != "off"
        return can and not self._is_sealed

    def _is_promised(self, shape: StepShape) -> bool:
        patches = {rows * columns for rows, columns in self._promised}
        return shape[0] == self._num_tokens and shape[1] * shape[2] in patches

    def _rotary_table(self, shape: tuple[int, int, int]) -> Tensor:
        axes = self._facts.shape.rotary_axes
        return to_device(rotary_table(*shape, axes), self._placement)


def _compiled_passes(placement: Placement) -> Passes:
    return Passes(
        double=compiled(DoubleBlock.forward, placement, "flux_double_block"),
        single=compiled(SingleBlock.forward, placement, "flux_single_block"),
        ends=compiled(Ends.forward, placement, "flux_ends"),
    )
