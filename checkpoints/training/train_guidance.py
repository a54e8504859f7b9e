"""Trains the meaning of the guidance value into the transformer by distillation, as in FLUX.1-dev.

A frozen copy predicts with and without the prompt. The transformer learns to give, in one pass,
the combination of both for a guidance value. The text encoders are not changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from checkpoints.training import encoders, flux_forward
from checkpoints.training.loop import Plan, Step, Trainer
from checkpoints.training.train_flux import (
    EMPTY_SHARE,
    KINDS_OF_STEP,
    Painter,
    Pool,
    draw_sigma,
    pick_prompts,
    position_tables,
)

LOWEST, HIGHEST, USUAL = 1.0, 5.0, 3.5  # guidance values; half the rows take the usual one


def _loss(
    painter: Painter,
    teacher: FluxTransformer2DModel,
    pool: Pool,
    length: int,
    batch: int,
    buckets: Tensor,
    tables: flux_forward.Tables,
) -> Tensor:
    device, dtype = pool.latents.device, pool.latents.dtype
    row, t5_ids, clip_ids, empty = pick_prompts(pool, length, batch, EMPTY_SHARE)
    bare_t5, bare_clip = pool.empty_prompt(length)
    with torch.no_grad():
        states = encoders.t5_states(painter.t5, torch.cat((t5_ids, bare_t5)), buckets)
        pooled = encoders.clip_pooled(painter.clip, torch.cat((clip_ids, bare_clip)))
        clean = pool.latents[pool.picture[row]].float()
        sigma = draw_sigma(batch, device, dtype)
        noisy = torch.lerp(clean, torch.randn_like(clean), sigma[:, None, None]).to(dtype)
        one = torch.ones_like(sigma)
        with_prompt = flux_forward.velocity(
            teacher, noisy, states[:-1], pooled[:-1], sigma, one, tables
        ).float()
        without_prompt = flux_forward.velocity(
            teacher, noisy, states[-1:].expand(batch, -1, -1),
            pooled[-1:].expand(batch, -1), sigma, one, tables,
        ).float()  # fmt: skip
        guidance = LOWEST + (HIGHEST - LOWEST) * torch.rand(batch, device=device)
        guidance = torch.where(torch.rand(batch, device=device) < 0.5, guidance, USUAL * one)
        away = torch.where(empty[:, :1, None], 0.0, guidance[:, None, None])
        wanted = without_prompt + away * (with_prompt - without_prompt)
    predicted = flux_forward.velocity(
        painter.transformer, noisy, states[:-1], pooled[:-1], sigma, guidance, tables
    )
    return (predicted.float() - wanted).square().mean()


def train_guidance(
    painter: Painter,
    pool: Pool,
    plan: Plan,
    save: Callable[[], None] | None = None,
    seed: int = 103,
) -> None:
    """Train the transformer in place; it ends in fp32 with its average weights."""
    torch.manual_seed(seed)
    dtype = pool.latents.dtype
    teacher = copy.deepcopy(painter.transformer).to(dtype).requires_grad_(False)
    for encoder in (painter.t5, painter.clip):
        encoder.to(dtype).requires_grad_(False)

    def make_step(length: int, batch: int) -> Step:
        tables = position_tables(painter, length, pool.latents.device)
        return partial(_loss, painter, teacher, pool, length, batch, *tables)

    trainer = Trainer([painter.transformer], plan, "guidance")
    trainer.run_kinds(KINDS_OF_STEP, make_step, seed, save)
