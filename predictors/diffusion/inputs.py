"""From a request to work: tokens, noise and the noise schedule, all on the host. Runs in pool
threads; knows no device and no other request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from predictors.diffusion.request import ImageRequest, Tiers
from predictors.diffusion.sampling import Course, Schedule, collapsed, draw_noise, plan
from predictors.models.flux.config import Facts, Tokenizers

PromptKey = tuple[str, int]
"""What an embedding depends on: the text and the number of T5 tokens."""
Plan = Callable[[int], tuple[bool, ...]]
"""From a number of steps to which of them call the model, as `sampling.plan`."""
Shape = tuple[int, int, int, str]
"""T5 tokens, patches down, patches across, and the form of the weights."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text as both encoders read it: int64 clip_ids (1, 77), t5_ids (1, num_tokens)."""

    key: PromptKey
    clip_ids: Tensor
    t5_ids: Tensor
    num_read: int
    """T5 tokens without padding."""


@dataclass(frozen=True, slots=True)
class FluxWork:
    """One picture, ready for the device; every tensor is on the host."""

    request: ImageRequest
    prompts: tuple[Prompt, ...]
    """The prompt, and with true CFG the negative prompt: the rows of a step."""
    course: Course
    form: str
    """Of the transformer's weights: `request.BASE` or `request.FP8`."""

    @property
    def shape(self) -> Shape:
        """What must be equal to share a step."""
        return self.prompts[0].key[1], self.course.rows, self.course.columns, self.form


class Preparer:
    """Prepares requests of one checkpoint. Thread-safe."""

    def __init__(
        self,
        facts: Facts,
        tokenizers: Tokenizers,
        dtype: torch.dtype,
        tiers: Tiers,
        plan: Plan = plan,
    ) -> None:
        self._facts = facts
        self._tiers = tiers
        self._plan = plan
        self._schedule = Schedule.of(facts.scheduler)
        self._tokenizers = tokenizers
        self._dtype = dtype
        # a tokenizer keeps padding and truncation as state and refuses to be borrowed twice
        self._lock = threading.Lock()

    def prepare(self, request: ImageRequest) -> FluxWork:
        """The work for a request that `Offer.request` made."""
        texts = [request.prompt]
        if request.is_guided:
            texts.append(request.negative_prompt or "")
        prompts = tuple(self.read(text, request.max_sequence_length) for text in texts)
        form = self._tiers.form_of(request.tier)
        return FluxWork(request, prompts, self._course(request), form)

    def _course(self, request: ImageRequest) -> Course:
        facts, dtype = self._facts, self._dtype
        rows = request.height // facts.patch_pixels
        columns = request.width // facts.patch_pixels
        sigmas = self._schedule.sigmas(request.num_inference_steps, rows * columns)
        called = steps_called(request, self._plan)
        levels = torch.from_numpy(sigmas)[[*called, True]]
        return Course(
            noise=draw_noise(request.seed, facts.latent_channels, rows, columns),
            timesteps=self._schedule.timesteps(levels.numpy(), dtype),
            dts=levels.diff().to(dtype),
            coefficients=torch.from_numpy(collapsed(sigmas, called)),
            num_steps=request.num_inference_steps,
            guidance=torch.tensor([request.guidance_scale]).to(dtype) * 1000,
            cfg_scale=torch.tensor(request.true_cfg_scale),
            rows=rows,
            columns=columns,
        )

    def read(self, text: str, num_tokens: int) -> Prompt:
        """Tokens of one text, padded or cut to 77 and `num_tokens`, as the pipeline does."""
        with self._lock:
            clip = self._tokenizers.clip
            clip_ids, _ = _ids(clip, text, clip.model_max_length)
            t5_ids, is_text = _ids(self._tokenizers.t5, text, num_tokens)
        return Prompt((text, num_tokens), clip_ids, t5_ids, int(is_text.sum()))


def steps_called(request: ImageRequest, plan: Plan = plan) -> tuple[bool, ...]:
    """Which steps of the request's schedule call the model: (num_inference_steps,)."""
    num_steps = request.num_inference_steps
    return plan(num_steps) if request.may_skip else (True,) * num_steps


def _ids(tokenizer: Any, text: str, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids and the mask of those that are text, each int64 (1, num_tokens)."""
    read = tokenizer(
        text, padding="max_length", max_length=num_tokens, truncation=True, return_tensors="pt"
    )
    return read.input_ids, read.attention_mask
