"""Trains the small Qwen2.5-VL on conversations about drawn and re-decoded pictures.

Pictures are clean, re-drawn by the autoencoder with a little noise in its latents, or
JPEG-compressed, all with light noise, so that the model also reads the small FLUX's pictures. Only
one picture size is trained: 128 x 128, which the processor resizes to 140 x 140.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from checkpoints.training import data, drawing, parts
from checkpoints.training.export import QWEN_FOLDER, qwen_rows, special_ids
from checkpoints.training.loop import Plan, Trainer
from checkpoints.training.train_vae import decode, encode
from checkpoints.training.vlm_forward import Forward, resize, to_patches

REDRAWN, COMPRESSED = 0.45, 0.05  # shares of the pictures; the rest is clean


@dataclass(frozen=True)
class Pool:
    """The training data, on the device. Row i is a conversation about picture i."""

    pictures: Tensor
    ids: Tensor
    said: Tensor
    slot: Tensor
    position: Tensor


def _compress(pictures: Tensor) -> Tensor:
    rng = random.Random(5)
    rows = []
    for array in pictures.permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=rng.randint(60, 95))
        rows.append(np.asarray(Image.open(file)).copy())
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).to(pictures.device)


def spoil(vae: AutoencoderKL | None, pictures: Tensor, share: float = REDRAWN) -> Tensor:
    """Redraw the first part of some pictures with the autoencoder and compress the next."""
    redrawn, compressed = int(len(pictures) * share), int(len(pictures) * COMPRESSED)
    pictures = pictures.clone()
    if vae is not None:
        latents = encode(vae, pictures[:redrawn]).float()
        noise = torch.randn_like(latents) * 0.15 * torch.rand(len(latents), 1, 1, 1).to(latents)
        pictures[:redrawn] = decode(vae, latents + noise)
    if compressed:
        rows = slice(redrawn, redrawn + compressed)
        pictures[rows] = _compress(pictures[rows])
    return pictures


def make_pool(vae: AutoencoderKL | None, count: int, device: str, workers: int) -> Pool:
    """Draw the pictures once and tokenise the conversations once."""
    arrays = data.gather(data.talk_shard, count, workers)
    scenes = data.all_scenes_of("captioner", count)
    placed = drawing.place(scenes, random.Random("captioner-places"))
    if vae is not None:
        vae = vae.to(device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    rows = []
    chunk = 4096
    for start in range(0, count, chunk):
        part = drawing.render(placed.part(start, start + chunk, device), device)
        rows.append(resize(spoil(vae, part)))
    tensors = {key: torch.from_numpy(value).to(device) for key, value in arrays.items()}
    return Pool(torch.cat(rows), **tensors)


def _loss(forward: Forward, pool: Pool, batch: int) -> Tensor:
    device = pool.ids.device
    row = torch.randint(len(pool.ids), (batch,), device=device)
    patches = to_patches(pool.pictures[row])
    grain = 0.06 * torch.rand(batch, 1, 1, device=device).square()
    patches = patches + grain * torch.randn_like(patches)
    ids = pool.ids[row].long()
    logits = forward(patches, ids, pool.slot[row].long(), pool.position[row].long())
    said = pool.said[row][:, 1:]
    loss = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    weights = said.flatten().float()
    return (loss * weights).sum() / weights.sum()


def build_captioner(device: str) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained captioner on a device."""
    tokenizer = Qwen2Tokenizer.from_pretrained(QWEN_FOLDER)
    return parts.build_qwen_vl(qwen_rows(tokenizer), special_ids(tokenizer)).to(device)


def train_captioner(
    model: Qwen2_5_VLForConditionalGeneration,
    pool: Pool,
    plan: Plan,
    save: Callable[[], None] | None = None,
    seed: int = 103,
) -> None:
    """Train the model in place. It ends in fp32 with its average weights."""
    torch.manual_seed(seed)
    device = pool.ids.device
    batch = 192 if device.type == "cuda" else 16
    forward = Forward(model).to(device)
    Trainer([model], plan, "qwen-vl").run([lambda: _loss(forward, pool, batch)], save=save)
    model.eval()
