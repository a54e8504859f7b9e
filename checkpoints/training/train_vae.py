"""Trains the small autoencoder (pictures to 16 x 16 x 16 latents and back), and writes the shift
and scale of its latents into the config.
"""

from __future__ import annotations

import random

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from checkpoints.training import drawing
from checkpoints.training.loop import Plan, Trainer
from checkpoints.training.scenes import sample

NOISE_FLOOR = 0.1
KL_WEIGHT = 2e-4


def pictures(count: int, device: str, seed: int = 1) -> Tensor:
    """Training pictures as uint8."""
    rng = random.Random(f"vae-{seed}")
    return drawing.render(drawing.place([sample(rng) for _ in range(count)], rng), device)


def _as_input(batch: Tensor, dtype: torch.dtype) -> Tensor:
    scaled = batch.float() / 127.5 - 1
    return scaled.to(dtype, memory_format=torch.channels_last)


def _loss(vae: AutoencoderKL, pool: Tensor, batch: int) -> Tensor:
    dtype = next(vae.parameters()).dtype
    x = _as_input(pool[torch.randint(len(pool), (batch,), device=pool.device)], dtype)
    mean, logvar = vae.encoder(x).float().chunk(2, dim=1)
    logvar = logvar.clamp(-10, 4)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    # A minimum of noise makes the decoder robust to the small errors of a generated latent.
    spread = (0.5 * logvar).exp().clamp_min(NOISE_FLOOR)
    z = (mean + spread * torch.randn_like(mean)).to(dtype)
    out = vae.decoder(z.contiguous(memory_format=torch.channels_last)).float()
    gap = out - x.float()
    edges = gap.diff(dim=2).abs().mean() + gap.diff(dim=3).abs().mean()
    return gap.abs().mean() + gap.square().mean() + 0.5 * edges + KL_WEIGHT * kl


@torch.no_grad()
def encode(vae: AutoencoderKL, pool: Tensor, chunk: int = 512) -> Tensor:
    """Latent means of uint8 pictures, not yet shifted or scaled, in the autoencoder's dtype."""
    dtype = next(vae.parameters()).dtype
    rows = [
        vae.encoder(_as_input(pool[start : start + chunk], dtype)).chunk(2, dim=1)[0]
        for start in range(0, len(pool), chunk)
    ]
    return torch.cat(rows).contiguous()


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, chunk: int = 512) -> Tensor:
    """uint8 pictures of raw latents."""
    dtype = next(vae.parameters()).dtype
    rows = []
    for start in range(0, len(latents), chunk):
        out = vae.decoder(latents[start : start + chunk].to(dtype)).float()
        rows.append(((out.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(rows)


def train_vae(
    vae: AutoencoderKL, device: str, plan: Plan, pool_size: int = 60_000, batch: int = 32
) -> None:
    """Train in place. It ends in fp32, with the shift and scale of its latents in its config."""
    pool = pictures(pool_size, device)
    torch.manual_seed(101)
    torch.backends.cudnn.benchmark = True
    vae.to(device, memory_format=torch.channels_last)
    Trainer([vae], plan, "vae").run([lambda: _loss(vae, pool, batch)])
    vae.eval()
    latents = encode(vae, pool[:4096]).float()
    vae.register_to_config(
        shift_factor=round(latents.mean().item(), 6),
        scaling_factor=round(1 / latents.std().item(), 6),
    )
