"""From a validated request to work for the engine: token ids, noise and the denoise plan.

Everything here is on the host and runs in pool threads, before the request takes a place in the
queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from predictors.diffusion.model import DiffusionModel, EditingModel, Prompt, StepShape
from predictors.diffusion.request import KONTEXT, ImageRequest, Tiers
from predictors.diffusion.sampling import DenoisePlan, first_step, plan_calls, update_coefficients
from predictors.diffusion.sources import SourceInputs

CallPlan = Callable[[int], tuple[bool, ...]]
"""From a number of steps to which of them call the model, as `sampling.plan_calls`."""


@dataclass(frozen=True, slots=True)
class DiffusionWork:
    """One picture, ready for the device; every tensor is on the host."""

    request: ImageRequest
    prompts: tuple[Prompt, ...]
    """The prompt, and with true CFG the negative prompt: the rows of a step."""
    plan: DenoisePlan
    form: str
    """Form of the transformer's weights: `request.BASE` or `request.FP8`."""
    previews: tuple[int, ...] = ()
    """Calls of the model after which a preview is made, from `preview_calls`."""
    source: SourceInputs | None = None

    @property
    def shape(self) -> StepShape:
        """Works of equal shape can share a step."""
        plan, num_text = self.plan, self.prompts[0].num_tokens
        return StepShape(num_text, plan.rows, plan.columns, self.form, plan.reference)

    @property
    def cost(self) -> float:
        """Tokens of all passes, to which the time of a picture is roughly proportional. An edit
        without a pass counts as one pass."""
        tokens = sum(prompt.num_tokens + self.shape.num_patches for prompt in self.prompts)
        return tokens * max(self.plan.num_calls, 1)

    @property
    def cost_kind(self) -> str:
        """`form`: a token takes less time with weights in fp8."""
        return self.form

    @property
    def tokens_read(self) -> tuple[int, int]:
        """Tokens of the prompt that are read, and the most tokens of a text that are cut off."""
        return self.prompts[0].num_read, max(prompt.num_unread for prompt in self.prompts)


class Preparer:
    """Makes the work for requests of one checkpoint. Thread-safe."""

    def __init__(
        self,
        model: DiffusionModel,
        dtype: torch.dtype,
        tiers: Tiers,
        plan_calls: CallPlan = plan_calls,
    ) -> None:
        self._model = model
        self._dtype = dtype
        self._tiers = tiers
        self._plan_calls = plan_calls

    def prepare(self, request: ImageRequest) -> DiffusionWork:
        """The work for a request that `PictureLimits.resolve` made."""
        texts = [request.prompt]
        if request.is_guided:
            texts.append(request.negative_prompt or "")
        prompts = tuple(self._model.tokenize(text, request.max_sequence_length) for text in texts)
        source = None
        if request.source is not None:
            assert isinstance(self._model, EditingModel)
            source = self._model.read_source(request.source, request.seed, request.strength)
        plan = self._plan(request)
        previews = preview_calls(request.partial_images, plan.num_calls)
        return DiffusionWork(request, prompts, plan, self.form_of(request), previews, source)

    def cost(self, request: ImageRequest) -> float:
        """The cost of the request's work, without making it."""
        side = self._model.config.patch_pixels
        rows, columns = self._reference_of(request)
        patches = (request.height // side) * (request.width // side) + rows * columns
        calls = max(sum(steps_called(request, self._plan_calls)), 1)
        return (request.max_sequence_length + patches) * request.num_rows * calls

    def form_of(self, request: ImageRequest) -> str:
        return self._tiers.form_of(request.tier)

    def _reference_of(self, request: ImageRequest) -> tuple[int, int]:
        config = self._model.config
        if request.source is None or config.kind != KONTEXT:
            return 0, 0
        height, width = request.source.pixels.shape[:2]
        return height // config.patch_pixels, width // config.patch_pixels

    def _plan(self, request: ImageRequest) -> DenoisePlan:
        model, dtype = self._model, self._dtype
        rows = request.height // model.config.patch_pixels
        columns = request.width // model.config.patch_pixels
        sigmas = model.schedule.sigmas(request.num_inference_steps, rows * columns)
        sigmas = sigmas[first_step(request.num_inference_steps, request.strength) :]
        called = steps_called(request, self._plan_calls)
        levels = torch.from_numpy(sigmas)[[*called, True]]
        return DenoisePlan(
            noise=model.draw_noise(request.seed, rows, columns),
            timesteps=model.schedule.timesteps(levels.numpy(), dtype),
            dts=levels.diff().to(dtype),
            coefficients=torch.from_numpy(update_coefficients(sigmas, called)),
            levels=tuple(levels.tolist()),
            num_steps=len(called),
            guidance=torch.tensor([request.guidance_scale]).to(dtype) * 1000,
            cfg_scale=torch.tensor(request.true_cfg_scale),
            rows=rows,
            columns=columns,
            reference=self._reference_of(request),
        )


def steps_called(request: ImageRequest, plan_calls: CallPlan = plan_calls) -> tuple[bool, ...]:
    """One bool for each step of the schedule that is run: true if it calls the model.

    An edit runs the last steps of a schedule. They call the model where the plan of the whole
    schedule does, since the velocity's change depends on the noise level. Its first two steps
    always call, so that there are two velocities to extrapolate from.
    """
    num_steps = request.num_inference_steps
    first = first_step(num_steps, request.strength)
    if not request.may_skip:
        return (True,) * (num_steps - first)
    called = plan_calls(num_steps)
    return (
        called if first == 0 else tuple(i < first + 2 or called[i] for i in range(first, num_steps))
    )


def preview_calls(num_previews: int, num_calls: int) -> tuple[int, ...]:
    """The numbers of calls of the model, from 1 to `num_calls` - 1 and ascending, after which a
    preview is made: evenly spread, and fewer where there are fewer calls."""
    count = max(0, min(num_previews, num_calls - 1))
    return tuple(round(i * num_calls / (count + 1)) for i in range(1, count + 1))
