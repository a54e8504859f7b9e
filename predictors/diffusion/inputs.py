"""From a validated request to work for the engine: token ids, noise and the denoise plan.

Everything here is on the host and runs in pool threads, before the request takes a place in the
queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from predictors.diffusion.model import DiffusionModel, Prompt, StepShape
from predictors.diffusion.request import ImageRequest, Tiers
from predictors.diffusion.sampling import DenoisePlan, collapsed, plan_calls

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
    """Of the transformer's weights: `request.BASE` or `request.FP8`."""
    previews: tuple[int, ...] = ()
    """Of `preview_calls`."""

    @property
    def shape(self) -> StepShape:
        """Works of equal shape can share a step."""
        return StepShape(self.prompts[0].num_tokens, self.plan.rows, self.plan.columns, self.form)

    @property
    def cost(self) -> float:
        """Tokens of all passes: the time of a picture is roughly in proportion."""
        tokens = sum(
            prompt.num_tokens + self.plan.rows * self.plan.columns for prompt in self.prompts
        )
        return tokens * self.plan.num_calls

    @property
    def cost_kind(self) -> str:
        """The form of the weights: a token takes less time in eight bits."""
        return self.form

    @property
    def tokens_read(self) -> tuple[int, int]:
        """Tokens of the prompt that are read, and tokens of a text that are not, at most."""
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
        """The work for a request that `PictureLimits.request` made."""
        texts = [request.prompt]
        if request.is_guided:
            texts.append(request.negative_prompt or "")
        prompts = tuple(self._model.tokenize(text, request.max_sequence_length) for text in texts)
        plan = self._plan(request)
        previews = preview_calls(request.partial_images, plan.num_calls)
        return DiffusionWork(request, prompts, plan, self.form_of(request), previews)

    def cost(self, request: ImageRequest) -> float:
        """The cost of the request's work, without making it."""
        side = self._model.config.patch_pixels
        patches = (request.height // side) * (request.width // side)
        calls = sum(steps_called(request, self._plan_calls))
        return (request.max_sequence_length + patches) * request.num_rows * calls

    def form_of(self, request: ImageRequest) -> str:
        return self._tiers.form_of(request.tier)

    def _plan(self, request: ImageRequest) -> DenoisePlan:
        model, dtype = self._model, self._dtype
        rows = request.height // model.config.patch_pixels
        columns = request.width // model.config.patch_pixels
        sigmas = model.schedule.sigmas(request.num_inference_steps, rows * columns)
        called = steps_called(request, self._plan_calls)
        levels = torch.from_numpy(sigmas)[[*called, True]]
        return DenoisePlan(
            noise=model.draw_noise(request.seed, rows, columns),
            timesteps=model.schedule.timesteps(levels.numpy(), dtype),
            dts=levels.diff().to(dtype),
            levels=tuple(levels[:-1].tolist()),
            coefficients=torch.from_numpy(collapsed(sigmas, called)),
            num_steps=request.num_inference_steps,
            guidance=torch.tensor([request.guidance_scale]).to(dtype) * 1000,
            cfg_scale=torch.tensor(request.true_cfg_scale),
            rows=rows,
            columns=columns,
        )


def steps_called(request: ImageRequest, plan_calls: CallPlan = plan_calls) -> tuple[bool, ...]:
    """The steps of the request's schedule that call the model: (num_inference_steps,)."""
    num_steps = request.num_inference_steps
    return plan_calls(num_steps) if request.may_skip else (True,) * num_steps


def preview_calls(num_previews: int, num_calls: int) -> tuple[int, ...]:
    """The numbers of calls of the model, from 1 to `num_calls` - 1 and ascending, after which a
    preview is made: evenly spread, and fewer where there are fewer calls."""
    count = min(num_previews, num_calls - 1)
    return tuple(round(i * num_calls / (count + 1)) for i in range(1, count + 1))
