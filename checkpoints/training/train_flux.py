"""Trains the small FLUX transformer together with its T5 and CLIP encoders on encoded pictures.

Rectified flow with velocity targets, as in FLUX. A tenth of the prompts is empty, so that true
guidance with negative prompts works; the guidance value is trained afterwards (`train_guidance`).
Prompts are padded to several lengths, because the padding is not masked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from checkpoints.training import data, drawing, encoders, flux_forward, parts
from checkpoints.training.export import load_tokenizers
from checkpoints.training.loop import Plan, Step, Trainer
from checkpoints.training.train_vae import encode

KINDS_OF_STEP = ((32, 256, 0.60), (64, 192, 0.32), (512, 40, 0.08))
EMPTY_SHARE = 0.1
SHIFT = 0.4675  # FLUX's dynamic shift for 64 picture tokens


def image_ids() -> Tensor:
    """Row and column of the 8 x 8 packed latent tokens."""
    side = parts.LATENT_SIDE // 2
    place = torch.arange(side)
    row, column = torch.meshgrid(place, place, indexing="ij")
    return torch.stack((torch.zeros_like(row), row, column), dim=-1).reshape(-1, 3).float()


def pack(latents: Tensor) -> Tensor:
    """[n, 16, 16, 16] to [n, 64, 64], as in FluxPipeline."""
    batch, channels, height, width = latents.shape
    x = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)


@dataclass(frozen=True)
class Pool:
    """The training data, on the device. Rows with short prompts come first."""

    latents: Tensor
    picture: Tensor
    t5: Tensor
    clip: Tensor
    short: int
    empty_t5: Tensor
    empty_clip: Tensor

    def empty_prompt(self, length: int) -> tuple[Tensor, Tensor]:
        """T5 and CLIP ids of no prompt, [1, length] and [1, up to 64]."""
        return _padded(self.empty_t5, length), self.empty_clip[:, : min(length, 64)]


@dataclass(frozen=True)
class Painter:
    """The three networks that are trained together."""

    transformer: FluxTransformer2DModel
    t5: T5EncoderModel
    clip: CLIPTextModel


def make_pool(vae: AutoencoderKL, count: int, device: str, workers: int) -> Pool:
    """Draw and encode the pictures once; tokenise their prompts once."""
    arrays = data.gather(data.prompt_shard, count, workers)
    scenes = data.all_scenes_of("painter", count)
    placed = drawing.place(scenes, random.Random("painter-places"))
    vae = vae.to(device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    rows = []
    for start in range(0, count, 4096):
        part = placed.part(start, start + 4096, device)
        rows.append(encode(vae, drawing.render(part, device)))
    raw = torch.cat(rows).float()
    latents = (raw - vae.config.shift_factor) * vae.config.scaling_factor
    clip, t5 = load_tokenizers()
    fixed = {"padding": "max_length", "max_length": data.PROMPT_LENGTH, "return_tensors": "pt"}
    limit = KINDS_OF_STEP[0][0]
    long = (arrays["t5"][:, limit:] != t5.pad_token_id).any(1)
    long |= (arrays["clip"][:, limit - 1 :] != clip.pad_token_id).any(1)
    order = torch.from_numpy(long).int().argsort(stable=True)
    sorted_rows = {k: torch.from_numpy(v)[order].to(device).long() for k, v in arrays.items()}
    return Pool(
        pack(latents).to(next(vae.parameters()).dtype),
        sorted_rows["picture"],
        sorted_rows["t5"],
        sorted_rows["clip"],
        int((~long).sum()),
        t5([""], **fixed).input_ids.to(device),
        clip([""], **fixed).input_ids.to(device),
    )


def _padded(ids: Tensor, length: int) -> Tensor:
    if length <= ids.shape[1]:
        return ids[:, :length]
    return nn.functional.pad(ids, (0, length - ids.shape[1]))


def pick_prompts(
    pool: Pool, length: int, batch: int, empty_share: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random rows of the pool: their numbers, T5 and CLIP ids, and a mask of the emptied
    prompts."""
    device = pool.latents.device
    rows = pool.short if length == KINDS_OF_STEP[0][0] else len(pool.picture)
    row = torch.randint(rows, (batch,), device=device)
    empty = torch.rand(batch, 1, device=device) < empty_share
    t5_ids = _padded(torch.where(empty, pool.empty_t5, pool.t5[row]), length)
    clip_ids = torch.where(empty, pool.empty_clip, pool.clip[row])[:, : min(length, 64)]
    return row, t5_ids, clip_ids, empty


def draw_sigma(batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Noise levels in fp32 that are exact in `dtype`, the precision of the network."""
    wide = torch.rand(batch, device=device) < 0.15
    spot = torch.sigmoid(torch.randn(batch, device=device) + SHIFT)
    sigma = torch.where(wide, torch.rand(batch, device=device), spot)
    return sigma.clamp(1e-3, 1).to(dtype).float()


def tables_for(
    transformer: FluxTransformer2DModel, length: int, device: torch.device
) -> flux_forward.Tables:
    """The rotary tables of a prompt of `length` tokens and one picture."""
    ids = torch.cat((torch.zeros(length, 3), image_ids())).to(device)
    return flux_forward.signed(transformer.pos_embed(ids))


def position_tables(
    painter: Painter, length: int, device: torch.device
) -> tuple[Tensor, flux_forward.Tables]:
    """T5's position buckets and the transformer's rotary tables for a prompt of `length` tokens."""
    buckets = encoders.t5_buckets(painter.t5, length)
    return buckets, tables_for(painter.transformer, length, device)


def _loss(
    painter: Painter,
    pool: Pool,
    length: int,
    batch: int,
    buckets: Tensor,
    tables: flux_forward.Tables,
) -> Tensor:
    device, dtype = pool.latents.device, pool.latents.dtype
    row, t5_ids, clip_ids, _ = pick_prompts(pool, length, batch, EMPTY_SHARE)
    states = encoders.t5_states(painter.t5, t5_ids, buckets)
    pooled = encoders.clip_pooled(painter.clip, clip_ids)
    clean = pool.latents[pool.picture[row]].float()
    noise = torch.randn_like(clean)
    sigma = draw_sigma(batch, device, dtype)
    noisy = torch.lerp(clean, noise, sigma[:, None, None])
    guidance = 1 + 4 * torch.rand(batch, device=device)
    out = flux_forward.velocity(
        painter.transformer, noisy.to(dtype), states, pooled, sigma, guidance, tables
    )
    return (out.float() - (noise - clean)).square().mean()


def build_painter(device: str) -> Painter:
    """The untrained networks on a device."""
    clip, t5 = load_tokenizers()
    painter = Painter(
        parts.build_transformer().to(device),
        parts.build_t5(len(t5)).to(device),
        parts.build_clip(len(clip)).to(device),
    )
    parts.calm(painter.transformer)
    return painter


def train_painter(
    painter: Painter,
    pool: Pool,
    plan: Plan,
    save: Callable[[], None] | None = None,
    seed: int = 102,
) -> None:
    """Train the networks in place. They end in fp32 with their average weights."""
    torch.manual_seed(seed)
    device = pool.latents.device
    for module in (painter.transformer, painter.t5, painter.clip):
        module.train()
    trainer = Trainer([painter.transformer, painter.t5, painter.clip], plan, "flux")

    def make_step(length: int, batch: int) -> Step:
        tables = position_tables(painter, length, device)
        return partial(_loss, painter, pool, length, batch, *tables)

    trainer.run_kinds(KINDS_OF_STEP, make_step, seed, save)
    for module in (painter.transformer, painter.t5, painter.clip):
        module.eval()
