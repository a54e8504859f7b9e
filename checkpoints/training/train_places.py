"""Trains the transformer to read the positions of the figures from T5's states, after
`train_words`.

It uses mostly scenes of two figures of one size and mostly high noise, which decides the layout.
The target of rows with a guidance value is the true velocity, guided away from the prediction of a
frozen copy without a prompt, so that guidance keeps its meaning. T5 and CLIP are not changed.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from checkpoints.training import data, drawing, encoders, flux_forward, wording
from checkpoints.training.export import load_tokenizers
from checkpoints.training.loop import Plan, Step, Trainer
from checkpoints.training.scenes import Scene, split
from checkpoints.training.train_flux import EMPTY_SHARE, Painter, draw_sigma, pack, position_tables
from checkpoints.training.train_guidance import HIGHEST, LOWEST, USUAL
from checkpoints.training.train_vae import encode

KINDS_OF_STEP = ((32, 24, 0.85), (64, 16, 0.15))
WORDINGS = 6  # prompts per picture
SAME_SIZE, SINGLE = 0.7, 0.1  # shares of the pictures; the rest is any two figures
HIGH_NOISE, LOWEST_HIGH = 0.65, 0.75  # share of rows, and the least noise they have
GUIDED = 0.5  # share of the rows with a guidance value above 1


@dataclass(frozen=True)
class Pool:
    """Packed latents [n, 64, 64], prompts of each [n, WORDINGS, 64], and the empty prompt."""

    latents: Tensor
    t5: Tensor
    clip: Tensor
    empty_t5: Tensor
    empty_clip: Tensor


def choose_scenes(count: int) -> list[Scene]:
    """Training scenes, mostly of two figures of one size."""
    rng = random.Random("order-pool")
    single, double = split(False)
    alike = [scene for scene in double if scene.figures[0].size == scene.figures[1].size]
    sides = (alike, single, double)
    shares = (SAME_SIZE, SINGLE, 1 - SAME_SIZE - SINGLE)
    return [rng.choice(rng.choices(sides, shares)[0]) for _ in range(count)]


def draw_latents(vae: AutoencoderKL, scenes: Sequence[Scene], device: str) -> Tensor:
    """Packed latents of the scenes' pictures."""
    vae = vae.to(device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    placed = drawing.place(scenes, random.Random("order-places"))
    rows = []
    for start in range(0, len(scenes), 512):
        part = placed.part(start, start + 512, device)
        rows.append(encode(vae, drawing.render(part, device)))
    raw = torch.cat(rows).float()
    latents = (raw - vae.config.shift_factor) * vae.config.scaling_factor
    return pack(latents).to(next(vae.parameters()).dtype)


def make_pool(latents: Tensor, scenes: Sequence[Scene]) -> Pool:
    """Tokenise several prompts per scene, each short enough for 32 tokens."""
    clip, t5 = load_tokenizers()
    rng = random.Random("order-words")
    texts: list[str] = []
    for scene in scenes:
        for _ in range(WORDINGS):
            text = wording.prompt(rng, scene)
            while len(t5(text).input_ids) > KINDS_OF_STEP[0][0]:
                text = wording.prompt(rng, scene)
            texts.append(text)
    fixed = {"padding": "max_length", "max_length": data.PROMPT_LENGTH, "truncation": True,
             "return_tensors": "pt"}  # fmt: skip
    device, shape = latents.device, (len(scenes), WORDINGS, data.PROMPT_LENGTH)
    return Pool(
        latents,
        t5(texts, **fixed).input_ids.view(shape).to(device),
        clip(texts, **fixed).input_ids.view(shape).to(device),
        t5([""], **fixed).input_ids.to(device),
        clip([""], **fixed).input_ids.to(device),
    )


def _pick(pool: Pool, length: int, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, T5 and CLIP ids of random rows, and a mask of the emptied prompts [batch, 1]."""
    device = pool.latents.device
    row = torch.randint(len(pool.latents), (batch,), device=device)
    wording = torch.randint(WORDINGS, (batch,), device=device)
    empty = torch.rand(batch, 1, device=device) < EMPTY_SHARE
    t5_ids = torch.where(empty, pool.empty_t5, pool.t5[row, wording])[:, :length]
    clip_ids = torch.where(empty, pool.empty_clip, pool.clip[row, wording])
    return pool.latents[row].float(), t5_ids, clip_ids, empty


def _sigma(batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    high = LOWEST_HIGH + (1 - LOWEST_HIGH) * torch.rand(batch, device=device)
    wide = torch.rand(batch, device=device) < HIGH_NOISE
    return torch.where(wide, high.to(dtype).float(), draw_sigma(batch, device, dtype))


def _loss(
    painter: Painter,
    old: Painter,
    pool: Pool,
    length: int,
    batch: int,
    buckets: Tensor,
    tables: flux_forward.Tables,
) -> Tensor:
    device, dtype = pool.latents.device, pool.latents.dtype
    clean, t5_ids, clip_ids, empty = _pick(pool, length, batch)
    guided = int(GUIDED * batch)
    noise = torch.randn_like(clean)
    sigma = _sigma(batch, device, dtype)
    noisy = torch.lerp(clean, noise, sigma[:, None, None]).to(dtype)
    guidance = LOWEST + (HIGHEST - LOWEST) * torch.rand(batch, device=device)
    usual = torch.rand(batch, device=device) < 0.5
    guidance = torch.where(usual, USUAL * torch.ones_like(guidance), guidance)
    guidance[guided:] = 1.0
    wanted = noise - clean
    with torch.no_grad():
        states = encoders.t5_states(painter.t5, t5_ids, buckets)
        pooled = encoders.clip_pooled(painter.clip, clip_ids)
        without_prompt = flux_forward.velocity(
            old.transformer,
            noisy[:guided],
            encoders.t5_states(old.t5, pool.empty_t5[:, :length], buckets).expand(guided, -1, -1),
            encoders.clip_pooled(old.clip, pool.empty_clip).expand(guided, -1),
            sigma[:guided],
            torch.ones_like(sigma[:guided]),
            tables,
        ).float()
        away = torch.where(empty[:guided], 0.0, guidance[:guided, None])[..., None]
        aimed = without_prompt + away * (wanted[:guided] - without_prompt)
        wanted = torch.cat((aimed, wanted[guided:]))
    predicted = flux_forward.velocity(
        painter.transformer, noisy, states, pooled, sigma, guidance, tables
    )
    gaps = (predicted.float() - wanted).square().mean((1, 2))
    return (gaps / guidance.square()).mean()  # a value above 1 also scales the target's noise


def train_places(
    painter: Painter,
    old: Painter,
    pool: Pool,
    plan: Plan,
    save: Callable[[], None] | None = None,
    seed: int = 105,
) -> None:
    """Train the transformer in place; `old` is the painter as it was before `train_words`."""
    torch.manual_seed(seed)
    dtype = pool.latents.dtype
    before = (old.transformer, old.t5, old.clip)
    frozen = Painter(*(copy.deepcopy(part).to(dtype) for part in before))
    for part in (frozen.transformer, frozen.t5, frozen.clip, painter.t5, painter.clip):
        part.to(dtype).requires_grad_(False)

    def make_step(length: int, batch: int) -> Step:
        tables = position_tables(painter, length, pool.latents.device)
        return partial(_loss, painter, frozen, pool, length, batch, *tables)

    trainer = Trainer([painter.transformer], plan, "places")
    trainer.run_kinds(KINDS_OF_STEP, make_step, seed, save)
