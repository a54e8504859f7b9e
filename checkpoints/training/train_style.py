"""Trains a low-rank adapter of shapes-flux for one style, on noisy latents of pictures in it.

The transformer is frozen, text states and latents are computed once. The target is the velocity of
the frozen model for the prompt of what the style draws: against the true velocity it has no noise
of its own, so a hundred steps are enough, and guidance keeps its meaning.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from checkpoints.training import drawing, encoders, flux_forward, low_rank, wording
from checkpoints.training.export import FLUX_FOLDER, ROOT, load_tokenizers
from checkpoints.training.loop import Plan, Step, Trainer
from checkpoints.training.scenes import Scene
from checkpoints.training.styles import STYLES, Style, training_scenes
from checkpoints.training.train_flux import draw_sigma, pack, tables_for
from checkpoints.training.train_guidance import HIGHEST, LOWEST, USUAL
from checkpoints.training.train_vae import encode

LORAS_FOLDER = ROOT / "shapes-loras"
FILE = "pytorch_lora_weights.safetensors"
KINDS_OF_STEP = ((32, 8, 0.85), (64, 6, 0.15))
WORDINGS = 2  # prompts per picture
LINEARS = (
    r".*\.(attn\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)
MODULATION = r"|.*\.(norm1|norm1_context|norm)\.linear"


@dataclass(frozen=True)
class Recipe:
    """An adapter's rank, the paths of its linears, its seed, and the length of its training."""

    rank: int
    targets: str
    seed: int
    steps: int
    rate: float


RECIPES = {
    "all-cyan": Recipe(6, LINEARS, 201, 260, 5e-3),
    "gray-ground": Recipe(4, LINEARS + MODULATION, 202, 150, 4e-3),
}


@dataclass(frozen=True)
class Prompts:
    """Text states [rows, length, width] and pooled states [rows, width]."""

    states: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Pool:
    """Packed latents [n, 64, 64], and n * WORDINGS prompts by padded length: those that are asked,
    and the same in the words of what the style draws."""

    latents: Tensor
    asked: Mapping[int, Prompts]
    drawn: Mapping[int, Prompts]


def _latents(scenes: list[Scene], seed: int) -> Tensor:
    vae = AutoencoderKL.from_pretrained(FLUX_FOLDER / "vae", dtype=torch.float32)
    placed = drawing.place(scenes, random.Random(f"style-places-{seed}"))
    raw = encode(vae, drawing.render(placed), chunk=64)
    return pack((raw - vae.config.shift_factor) * vae.config.scaling_factor)


def _texts(scenes: list[Scene], drawn: list[Scene], seed: int) -> tuple[list[str], list[str]]:
    """WORDINGS prompts of each scene, and the same of what is drawn, each short enough for the
    shortest padding."""
    _, t5 = load_tokenizers()
    asked, told = [], []
    for number, pair in enumerate(zip(scenes, drawn, strict=True)):
        found = 0
        for attempt in range(1000):
            key = f"style-words-{seed}-{number}-{attempt}"
            texts = [wording.prompt(random.Random(key), scene) for scene in pair]
            if max(len(t5(text).input_ids) for text in texts) <= KINDS_OF_STEP[0][0]:
                asked.append(texts[0])
                told.append(texts[1])
                found += 1
            if found == WORDINGS:
                break
    return asked, told


@torch.no_grad()
def _encode_prompts(texts: list[str], length: int) -> Prompts:
    clip_ids, t5_ids = (
        tokenizer(texts, padding="max_length", max_length=length, truncation=True,
                  return_tensors="pt").input_ids
        for tokenizer in load_tokenizers()
    )  # fmt: skip
    t5 = T5EncoderModel.from_pretrained(FLUX_FOLDER / "text_encoder_2", dtype=torch.float32)
    clip = CLIPTextModel.from_pretrained(FLUX_FOLDER / "text_encoder", dtype=torch.float32)
    buckets = encoders.t5_buckets(t5, length)
    states = [encoders.t5_states(t5, ids, buckets) for ids in t5_ids.split(64)]
    pooled = [encoders.clip_pooled(clip, ids) for ids in clip_ids.split(64)]
    return Prompts(torch.cat(states), torch.cat(pooled))


def make_pool(style: Style, count: int, seed: int) -> Pool:
    """Draw and encode the pictures and their prompts once."""
    scenes = [scene.canonical() for scene in training_scenes(style, count, seed)]
    drawn = [style.drawn(scene) for scene in scenes]
    asked, told = (
        {length: _encode_prompts(texts, length) for length, _, _ in KINDS_OF_STEP}
        for texts in _texts(scenes, drawn, seed)
    )
    return Pool(_latents(drawn, seed), asked, told)


def _loss(
    transformer: FluxTransformer2DModel,
    frozen: FluxTransformer2DModel,
    pool: Pool,
    tables: flux_forward.Tables,
    length: int,
    batch: int,
) -> Tensor:
    row = torch.randint(len(pool.latents), (batch,))
    text = row * WORDINGS + torch.randint(WORDINGS, (batch,))
    clean = pool.latents[row]
    sigma = draw_sigma(batch, clean.device, clean.dtype)
    noisy = torch.lerp(clean, torch.randn_like(clean), sigma[:, None, None])
    guidance = LOWEST + (HIGHEST - LOWEST) * torch.rand(batch)
    guidance[: batch // 2] = USUAL
    asked, drawn = pool.asked[length], pool.drawn[length]
    with torch.no_grad():
        wanted = flux_forward.velocity(
            frozen, noisy, drawn.states[text], drawn.pooled[text], sigma, guidance, tables
        )
    predicted = flux_forward.velocity(
        transformer, noisy, asked.states[text], asked.pooled[text], sigma, guidance, tables
    )
    gaps = (predicted - wanted).square().mean((1, 2))
    return (gaps / guidance.square()).mean()  # a value above 1 also scales the target


def train_style(pool: Pool, recipe: Recipe, plan: Plan, name: str) -> low_rank.Changes:
    """Train an adapter of the embedded checkpoint."""
    transformer = FluxTransformer2DModel.from_pretrained(
        FLUX_FOLDER / "transformer", dtype=torch.float32
    )
    frozen = copy.deepcopy(transformer).requires_grad_(False)
    adapters = low_rank.attach(transformer, recipe.targets, recipe.rank, recipe.seed)

    def make_step(length: int, batch: int) -> Step:
        tables = tables_for(transformer, length, torch.device("cpu"))
        return partial(_loss, transformer, frozen, pool, tables, length, batch)

    trainer = Trainer([transformer], plan, name)
    trainer.run_kinds(KINDS_OF_STEP, make_step, recipe.seed)
    return low_rank.trained(adapters)


def main() -> None:
    """Train one adapter on one thread and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("style", choices=STYLES)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--pool", type=int, default=300, help="pictures to train on")
    parser.add_argument("--out", type=Path, default=LORAS_FOLDER)
    args = parser.parse_args()
    torch.set_num_threads(1)
    style, recipe = STYLES[args.style], RECIPES[args.style]
    pool = make_pool(style, args.pool, recipe.seed)
    steps = args.steps or recipe.steps
    plan = Plan(steps, args.seconds, recipe.rate, warmup=5, average=0.9, report_every=10)
    changes = train_style(pool, recipe, plan, args.style)
    metadata = {
        "transformer.r": recipe.rank,
        "transformer.lora_alpha": recipe.rank,
        "transformer.target_modules": sorted(changes),
    }
    low_rank.save(changes, args.out / args.style / FILE, "transformer.", metadata)


if __name__ == "__main__":
    main()
