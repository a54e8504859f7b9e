"""Goes on training the captioner for boxes, JSON and tools beside its old skills.

Several processes write the conversations; they and the pictures stay on the device, and a step is
one CUDA graph for each padded length. On a CPU the same steps run slowly, for the tests.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from checkpoints.training import data, drawing, export, grounding, trees
from checkpoints.training.loop import Plan, Step, Trainer
from checkpoints.training.train_qwen_vl import spoil
from checkpoints.training.vlm_forward import Forward, resize, to_patches

SHARD = 1_000
LENGTHS = (
    256,
    352,
    448,
    576,
    768,
    1024,
    1536,
)  # padded lengths of the trees; longer ones are left out
TOKENS = 49_152  # of a step on a GPU, padding included
SIDES = (128, 128, 128, 128, 128, 280, 200, 512)  # drawn sizes, one of them for each shard
WIDE = 0.4  # share of scenes whose figures stand where the relation does not tell
SILENT, TOOLS_ALONE, TOOLS = 0.04, 0.10, 0.26  # shares of trees
LAST_DIGIT = 0.3  # weight of the last digit of a number: it can hardly be known
DIGITS = range(15, 25)  # the tokens of 0 to 9
FIELDS = ("ids", "said", "branch", "slot", "position", "picture")


@dataclass(frozen=True)
class Pool:
    """The training data, on the device: pictures as read [n, 3, 140, 140] in uint8, and the trees
    of each padded length."""

    pictures: Tensor
    rows: dict[int, trees.Rows]


def shard_pictures(shard: int) -> tuple[list[trees.Seen], drawing.Batch, random.Random]:
    """The scenes of one shard with their boxes, where they are drawn, and the random generator in
    its state after them."""
    scenes, rng = data.shard_scenes("tuned", shard, SHARD)
    wide = round(SHARD * WIDE)
    parts = [(scenes[:wide], drawing.WIDE), (scenes[wide:], drawing.USUAL)]
    placed = drawing.joined([drawing.place(part, rng, spread) for part, spread in parts])
    boxes = grounding.figure_boxes(placed).tolist()
    return [trees.Seen(*both) for both in zip(scenes, boxes, strict=True)], placed, rng


def _tree(rng: random.Random, number: int, seen: trees.Seen) -> trees.Tree:
    draw = rng.random()
    if draw < SILENT:
        return trees.silent_tree(rng)
    if draw < TOOLS_ALONE:
        return trees.tool_tree(rng, -1, None)
    if draw < TOOLS:
        return trees.tool_tree(rng, number, seen)
    return trees.picture_tree(rng, number, seen)


def tree_shard(shard: int, count: int) -> data.Arrays:
    """The trees about the first `count` pictures of a shard, by padded length: `LENGTH.FIELD`."""
    planter = trees.Planter(Qwen2Tokenizer.from_pretrained(export.QWEN_FOLDER))
    seen, _, rng = shard_pictures(shard)
    first = shard * SHARD
    planted = [_tree(rng, first + number, seen[number]) for number in range(count)]
    flat = planter.flat(planted)
    arrays: data.Arrays = {}
    for shorter, length in zip((0, *LENGTHS), LENGTHS, strict=False):
        chosen = [n for n, row in enumerate(flat) if shorter < row.shape[1] <= length]
        rows = planter.rows([planted[n] for n in chosen], [flat[n] for n in chosen], length)
        for field in FIELDS:
            kind = np.int32 if field == "picture" else np.int16
            arrays[f"{length}.{field}"] = getattr(rows, field).numpy().astype(kind)
    return arrays


def _draw(shard: int, vae: AutoencoderKL | None, device: str) -> Tensor:
    """A shard's pictures as the captioner reads them. Those of the usual size are also spoilt."""
    _, placed, _ = shard_pictures(shard)
    side = SIDES[shard % len(SIDES)]
    drawn = drawing.render(placed.part(0, SHARD, device), device, side=side)
    if side == drawing.SIDE:
        order = torch.randperm(SHARD, device=device)
        drawn[order] = spoil(vae, drawn[order])
    return resize(drawn)


def make_pool(vae: AutoencoderKL | None, shards: int, device: str, workers: int) -> Pool:
    """Write the conversations and draw their pictures."""
    arrays = data.gather(tree_shard, shards * SHARD, workers, SHARD)
    if vae is not None:
        vae = vae.to(device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    pictures = torch.cat([_draw(shard, vae, device) for shard in range(shards)])
    rows = {
        length: trees.Rows(*(torch.from_numpy(arrays[f"{length}.{f}"]).to(device) for f in FIELDS))
        for length in LENGTHS
    }
    return Pool(pictures, rows)


def step_loss(forward: Forward, pool: Pool, length: int, batch: int) -> Tensor:
    """The loss of trees of one padded length, drawn at random. A tree without a picture is shown
    the first one, and has no place for it."""
    kept = pool.rows[length]
    drawn = torch.randint(len(kept.ids), (batch,), device=kept.ids.device)
    rows = kept.take(drawn)
    patches = noisy(to_patches(pool.pictures[rows.picture.clamp_min(0)], frames=1))
    seen = forward.see(patches)
    logits = forward.read(seen, rows.ids, rows.slot, rows.position, rows.allowed())
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), rows.ids[:, 1:].flatten(), reduction="none"
    )
    weights = (rows.said * _weights(rows.ids))[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def _weights(ids: Tensor) -> Tensor:
    """1, and `LAST_DIGIT` for the last digit of a number, which would drown the rest."""
    is_digit = (ids >= DIGITS.start) & (ids < DIGITS.stop)
    is_last = is_digit & ~F.pad(is_digit[:, 1:], (0, 1))
    return 1.0 - (1.0 - LAST_DIGIT) * is_last


def noisy(patches: Tensor) -> Tensor:
    """Patches with the light noise that the captioner was first trained with."""
    grain = 0.06 * torch.rand(len(patches), 1, 1, device=patches.device).square()
    return patches + grain * torch.randn_like(patches)


def tune(
    model: Qwen2_5_VLForConditionalGeneration,
    pool: Pool,
    plan: Plan,
    seed: int,
    save: Callable[[], None] | None = None,
) -> None:
    """Train the model in place. It ends in fp32 with its average weights."""
    torch.manual_seed(seed)
    forward = Forward(model).to(pool.pictures.device)

    def make_step(length: int, batch: int) -> Step:
        return functools.partial(step_loss, forward, pool, length, batch)

    kinds = [
        (length, TOKENS // length, len(rows.ids) * length)
        for length, rows in pool.rows.items()
        if len(rows.ids)
    ]
    Trainer([model], plan, "tune").run_kinds(kinds, make_step, seed, save)
    model.eval()


def main() -> None:
    """Tune the committed weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=Path, default=export.QWEN_FOLDER)
    parser.add_argument("--work", type=Path, default=Path(".work/tuned"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shards", type=int, default=160, help="of 1,000 pictures")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward failed on Hopper with torch 2.11
    vae = AutoencoderKL.from_pretrained(export.FLUX_FOLDER / "vae")
    pool = make_pool(vae, args.shards, args.device, args.workers)
    print({length: len(rows.ids) for length, rows in pool.rows.items()}, flush=True)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32)
    model.to(args.device)
    steps = args.steps or 10**9
    plan = Plan(steps, args.seconds, args.rate, warmup=min(500, steps // 10 + 1))

    def save() -> None:
        model.save_pretrained(args.work)

    tune(model, pool, plan, args.seed, save)
    save()


if __name__ == "__main__":
    main()
