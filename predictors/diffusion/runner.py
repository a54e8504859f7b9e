"""Runs a model's forward passes: encodes a prompt, starts a picture, denoises several, decodes one.

On a GPU each pass of a promised shape is one CUDA graph; elsewhere it is the function the model
gives. Everything runs on the engine thread in `torch.inference_mode`. No method changes a
`DenoiseState`: results are returned, and the engine commits them once the whole step has succeeded.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from predictors.compute.device.graphs import Captured, Graphs, run_pieces
from predictors.compute.device.pacing import StepPacer
from predictors.compute.device.placement import (
    Placement,
    is_device_lost,
    to_device,
    to_host_async,
)
from predictors.compute.device.sharing import PictureTurns
from predictors.compute.low_rank import RankRows
from predictors.compute.profiling.profiler import staged
from predictors.diffusion.adapters import NO_ADAPTERS, AppliedAdapters, AppliedChange
from predictors.diffusion.latents import DenoiseState, PictureTransfer, StepResult, next_step
from predictors.diffusion.limits import PictureLimits
from predictors.diffusion.model import (
    AdaptedPasses,
    DiffusionPasses,
    Embedding,
    PiecewisePasses,
    Prompt,
    StepShape,
)
from predictors.diffusion.picture_encoder import PictureEncoder
from predictors.diffusion.request import BASE
from predictors.diffusion.sampling import DenoisePlan
from predictors.diffusion.sources import EditState, EncodedSource, SourceInputs
from predictors.serving.engine import StickyDeviceError

NUM_POSITIONS = 64  # tables kept on the device; 2 MB each at 1024x1024
NUM_TIMED = 3
ALONE = PictureTurns()


class StepKey(NamedTuple):
    """A captured step is for one set of these."""

    num_text: int
    num_patches: int
    form: str
    rows: int
    rank_width: int


class DiffusionRunner:
    """One loaded checkpoint's passes, with their graphs and widths. Engine thread only."""

    def __init__(
        self,
        name: str,
        passes: DiffusionPasses,
        placement: Placement,
        limits: PictureLimits,
        max_rows: int,
        turns: PictureTurns = ALONE,
    ) -> None:
        self.passes = passes
        self._placement = placement
        self._num_text = limits.default_sequence_length
        self._patch_pixels = side = limits.side_multiple
        self._promised = {(height // side, width // side) for width, height in limits.sizes}
        self._promised_patches = limits.promised_patches
        self._max_rows = max_rows
        self._graphs = Graphs(name, placement)
        self._turns = turns
        pictures = {(height, width) for width, height in limits.promised_sources}
        self._pictures = PictureEncoder(passes, placement, self._graphs, pictures)
        self._steps: dict[StepKey, Captured[Tensor]] = {}
        self._encoders: dict[int, Captured[tuple[Tensor, ...]]] = {}
        self._decoders: dict[tuple[int, int], Captured[Tensor]] = {}
        self.widths: dict[StepShape, int] = {}
        self._seconds: Mapping[tuple[StepShape, int], float] = {}
        self._is_measured = placement.is_cuda  # on shared CPU cores the time would mean little
        self._positions = lru_cache(NUM_POSITIONS)(self._positions_on_device)

    # -- one picture from prompt to pixels -------------------------------------------------------
    @staged("text_encode")
    def encode(self, prompt: Prompt, applied: AppliedAdapters = NO_ADAPTERS) -> Embedding:
        """The text encoders on one prompt: always one row, so its bits depend on nothing else but
        `applied`. Encoders with adapters are not captured: an embedding is kept."""
        ids = tuple(to_device(each, self._placement) for each in prompt.ids)
        num_text = prompt.num_tokens
        captured = self._encoders.get(num_text)
        if captured is None and self._captures and num_text == self._num_text:
            captured = self._graphs.capture(self.passes.encode, ids, "text encoders")
            self._encoders[num_text] = captured
        run: Callable[..., tuple[Tensor, ...]] = captured or self.passes.encode
        with self._adapted(applied.prompt):
            results = (self.passes.encode if applied.prompt else run)(*ids)
        # a graph's results hold until the next replay only
        context, *pooled = (result.clone() for result in results)
        return Embedding(context, tuple(pooled))

    def encode_source(self, source: SourceInputs) -> EncodedSource:
        return self._pictures.encode(source, captures=self._captures)

    def start(
        self,
        plan: DenoisePlan,
        prompts: Sequence[Embedding],
        form: str,
        applied: AppliedAdapters = NO_ADAPTERS,
        source: EncodedSource | None = None,
    ) -> DenoiseState:
        """A picture before its first step: everything its steps have in common, and its noise.
        `prompts` are not needed where no step is run."""
        place = self._placement
        noise, edit = to_device(plan.noise, place, place.dtype), None
        context, modulation = noise.new_empty(1, 0, 0), noise.new_empty(0, 1, 0)
        if prompts:
            context = torch.stack([prompt.context for prompt in prompts])
            with self._adapted(applied.picture):
                modulation = self.passes.modulations(
                    to_device(plan.timesteps, place), to_device(plan.guidance, place), prompts
                )
        if source is not None:
            levels = to_device(torch.tensor(plan.levels), place, place.dtype)
            edit = EditState(source, noise, levels)
        return DenoiseState(
            latents=noise if edit is None else edit.first_latents(),
            velocity=None,
            calls_done=0,
            context=context,
            modulation=modulation,
            dts=to_device(plan.dts, place),
            coefficients=to_device(plan.coefficients, place),
            is_exact=plan.is_exact,
            cfg_scale=to_device(plan.cfg_scale, place),
            positions=self._positions(context.shape[1], plan.rows, plan.columns, plan.reference),
            shape=StepShape(context.shape[1], plan.rows, plan.columns, form, plan.reference),
            rank_rows=self._rank_rows(applied),
            edit=edit,
        )

    def _adapted(self, changes: Sequence[AppliedChange]) -> AbstractContextManager[None]:
        return self._adapted_passes.adapted(changes) if changes else nullcontext()

    def _rank_rows(self, applied: AppliedAdapters) -> RankRows | None:
        if not applied.width:
            return None
        unused = applied.width - len(applied.rows)
        index = torch.tensor([[*applied.rows, *[0] * unused]])
        scales = torch.tensor([[*applied.scales, *[0.0] * unused]])
        return RankRows(to_device(index, self._placement), to_device(scales, self._placement))

    @staged("denoise_step")
    def denoise(self, states: Sequence[DenoiseState], width: int = 0) -> list[StepResult]:
        """The next computed step of each of `states`, which have one shape.

        `width` rows share a pass, or as many as `self.width` says, if they have as many rank rows:
        those without adapters take the pass that they always take. Launches only: no value is read
        back and nothing is uploaded.
        """
        width = width or self.width(states[0].shape)
        results: dict[int, StepResult] = {}
        for rank_width in sorted({s.rank_width for s in states}):
            alike = [(i, s) for i, s in enumerate(states) if s.rank_width == rank_width]
            shares = self._velocities([s for _, s in alike], width)
            results |= {i: next_step(s, share) for (i, s), share in zip(alike, shares, strict=True)}
        return [results[i] for i in range(len(states))]

    def _velocities(self, states: Sequence[DenoiseState], width: int) -> Sequence[Tensor]:
        """The velocity of each of `states`, (its rows, I, C), in passes of `width` rows."""
        inputs = [
            torch.cat([s.inputs for s in states]),
            torch.cat([s.context for s in states]),
            torch.cat([s.modulation[s.calls_done] for s in states]),
        ]
        chosen = [(s.rank_rows, s.num_rows) for s in states if s.rank_rows is not None]
        if chosen:
            inputs.append(torch.cat([own.index.expand(rows, -1) for own, rows in chosen]))
            inputs.append(torch.cat([own.scales.expand(rows, -1) for own, rows in chosen]))
        shares = zip(*(x.split(width) for x in inputs), strict=True)
        velocity = torch.cat([self._velocity(states[0], *share) for share in shares])
        if states[0].shape.reference != (0, 0):
            velocity = velocity[:, : states[0].latents.shape[0]]
        each: Sequence[Tensor] = velocity.split([s.num_rows for s in states])
        return each

    @staged("vae_decode")
    def decode(self, state: DenoiseState, packed: Tensor | None = None) -> PictureTransfer:
        """Start to decode a finished picture, or `packed` latents of its shape. Launches only."""
        rows, columns = state.shape.rows, state.shape.columns
        latents = self.passes.unpacked(state.latents if packed is None else packed, rows, columns)
        copy = to_host_async(self._decoder(rows, columns, latents)(latents))
        return PictureTransfer(copy, rows * self._patch_pixels, columns * self._patch_pixels)

    # -- passes ---------------------------------------------------------------------------------
    def _velocity(
        self,
        state: DenoiseState,
        latents: Tensor,
        context: Tensor,
        modulation: Tensor,
        *rank_rows: Tensor,
    ) -> Tensor:
        """One pass; `rank_rows` are index and scales of `RankRows`, or nothing."""
        shape = state.shape
        inputs = (latents, context, modulation, state.positions, *rank_rows)
        num_patches = shape.num_patches
        # a pass depends on the number of patches; `positions` says how they are arranged
        key = StepKey(shape.num_text, num_patches, shape.form, latents.shape[0], state.rank_width)
        captured = self._steps.get(key)
        if captured is None:
            is_promised = shape.num_text == self._num_text and num_patches in self._promised_patches
            pieces = self._pieces(shape.form, is_promised=is_promised, is_adapted=bool(rank_rows))
            if not (is_promised and self._captures):
                made: Tensor = run_pieces(pieces, inputs, self._turns.piece)
                return made
            captured = self._graphs.capture_pieces(pieces, inputs, f"step of {key}")
            self._steps[key] = captured
        velocity = captured(*inputs, turn=self._turns.piece)
        return velocity.clone()  # a graph's result holds until the next replay only

    def _pieces(
        self, form: str, *, is_promised: bool, is_adapted: bool
    ) -> Sequence[Callable[..., Any]]:
        """The pass of a step: one function, or several on a shared card."""
        passes, count = self.passes, self._turns.step_pieces
        if count > 1 and isinstance(passes, PiecewisePasses):
            return passes.velocity_pieces(
                form, count, is_promised=is_promised, is_adapted=is_adapted
            )
        if is_adapted:
            return [self._adapted_passes.adapted_velocity(form)]
        return [passes.velocity(form, is_promised=is_promised)]

    def _decoder(self, rows: int, columns: int, latents: Tensor) -> Callable[..., Tensor]:
        captured = self._decoders.get((rows, columns))
        if captured is not None:
            return captured
        is_promised = (rows, columns) in self._promised
        run = self.passes.decoder(is_promised=is_promised)
        if not (is_promised and self._captures):
            return run
        captured = self._graphs.capture(run, (latents,), f"decode {rows}x{columns}")
        self._decoders[rows, columns] = captured
        return captured

    @property
    def _adapted_passes(self) -> AdaptedPasses:
        assert isinstance(self.passes, AdaptedPasses)
        return self.passes

    @property
    def _captures(self) -> bool:
        can = self._placement.is_cuda and self._placement.compile != "off"
        return can and not self._graphs.is_sealed

    def _positions_on_device(
        self, num_text: int, rows: int, columns: int, reference: tuple[int, int]
    ) -> Tensor:
        table = self.passes.positions(num_text, rows, columns, reference)
        return to_device(table, self._placement)

    # -- widths ---------------------------------------------------------------------------------
    def width(self, shape: StepShape) -> int:
        largest = self.largest_width(shape.form)
        return min(largest, self.widths.get(shape, 1 if self._is_measured else largest))

    def name_of(self, shape: StepShape) -> str:
        return f"{shape.described(self._patch_pixels)} {shape.form}"

    def describe_widths(self) -> dict[str, int]:
        """Widths by size and form. Any thread."""
        return {self.name_of(shape): width for shape, width in list(self.widths.items())}

    def largest_width(self, form: str) -> int:
        """The most rows that ever share a pass.

        On a GPU a row's bits depend on the rows beside it, so the exact weights take one at a time
        there; from 512x512 on that costs nothing, since one picture fills the device.
        """
        return 1 if self._is_measured and form == BASE else self._max_rows

    def seconds_per_pass(self, states: Sequence[DenoiseState]) -> float:
        """Device seconds of a step in which all `states` share one pass, warmed before; 0 where
        widths are not measured. Waits for the device: while warming only."""
        if not self._is_measured:
            return 0.0
        pacer: StepPacer[str] = StepPacer(self._placement)
        for _ in range(NUM_TIMED):
            with pacer.step(""):
                self.denoise(states, sum(state.num_rows for state in states))
        return statistics.median(done.seconds for done in pacer.wait(ahead=1))

    def seconds(self, shape: StepShape, rows: int) -> float:
        """Time of a pass beside other passes of that shape: as measured, else one unit per row."""
        return self._seconds.get((shape, rows), float(rows))

    def seal(
        self, widths: Mapping[StepShape, int], seconds: Mapping[tuple[StepShape, int], float]
    ) -> None:
        """Serve with these widths, and the `seconds` by shape and rows that they follow from;
        nothing is captured from now on."""
        self.widths = dict(widths)
        self._seconds = seconds if self._is_measured else {}
        patches = {(s.num_text, s.num_patches, s.form): width for s, width in widths.items()}
        self._steps = {
            key: run for key, run in self._steps.items() if key.rows <= patches.get(key[:3], 1)
        }
        self._graphs.seal()

    def planned(self) -> AbstractContextManager[None]:
        """The block warms promised shapes after `seal`: it may capture."""
        return self._graphs.planned()

    @property
    def captures(self) -> int:
        return self._graphs.count

    @property
    def captures_after_ready(self) -> int:
        """Graphs captured after `seal` that were not `planned`. Any thread."""
        return self._graphs.count_after_ready

    def close(self) -> None:
        self._graphs.close()


@contextmanager
def device_errors() -> Iterator[None]:
    """Raise `StickyDeviceError` for a lost device context, anything else as it is."""
    try:
        yield
    except RuntimeError as error:
        if is_device_lost(error):
            raise StickyDeviceError("the CUDA context is lost") from error
        raise
