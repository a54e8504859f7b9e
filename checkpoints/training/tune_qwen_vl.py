"""Goes on training the captioner for boxes, JSON and tools beside its old skills, on a CPU.

Pictures are drawn as they are needed; a part are re-drawn by the autoencoder beforehand. Two linear
heads, thrown away afterwards, read every figure's box off the picture tokens, so that the vision
tower learns places sooner than from digits alone.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from checkpoints.training import drawing, export, grounding, trees
from checkpoints.training.data import shard_scenes
from checkpoints.training.loop import Plan, Trainer
from checkpoints.training.scenes import Scene, sample
from checkpoints.training.train_qwen_vl import spoil
from checkpoints.training.vlm_forward import Forward, resize, to_patches

SIDES = ((128, 0.75), (140, 0.13), (280, 0.12))  # drawn sizes and their shares
WIDE = 0.4  # share of scenes whose figures stand where the relation does not tell
REDRAWN = 0.2  # share of pictures that went through the autoencoder, where there are any
GROUP = 96  # trees that are sorted by length, to be padded little
TOKENS = 2_400  # of a batch, padding included: many small steps learn more than few large ones
ALBUM = 3_000  # pictures that are kept to be seen again
NEW = 0.4  # share of the pictures that are drawn anew
LOOK = 64  # pictures in a step of the tower alone
LAST_DIGIT = 0.15
DIGITS = range(15, 25)  # the tokens of 0 to 9
CELL = 28
KEEP = 1.0  # weight of the old picture tokens


@dataclass(frozen=True)
class Pictures:
    """Pictures as read [n, 3, 140, 140] in uint8, their scenes and boxes [n, 2, 4]."""

    pixels: Tensor
    scenes: list[Scene]
    boxes: Tensor

    def __getitem__(self, rows: list[int]) -> Pictures:
        return Pictures(self.pixels[rows], [self.scenes[row] for row in rows], self.boxes[rows])


def draw(rng: random.Random, count: int, side: int) -> Pictures:
    """Fresh pictures of one drawn size."""
    scenes = [sample(rng) for _ in range(count)]
    wide = round(count * WIDE)
    parts = [(scenes[:wide], drawing.WIDE), (scenes[wide:], drawing.USUAL)]
    placed = [drawing.place(part, rng, spread) for part, spread in parts if part]
    pixels = torch.cat([resize(drawing.render(batch, side=side)) for batch in placed])
    return Pictures(pixels, scenes, torch.cat([grounding.figure_boxes(b) for b in placed]))


def redraw(file: Path, count: int) -> None:
    """Write pictures that went through the autoencoder of shapes-flux."""
    vae = AutoencoderKL.from_pretrained(export.FLUX_FOLDER / "vae", torch_dtype=torch.float32)
    scenes, rng = shard_scenes("redrawn", 0, count)
    placed = drawing.place(scenes, rng)
    torch.manual_seed(7)
    rows = []
    for start in range(0, count, 64):
        part = drawing.render(placed.part(start, start + 64, "cpu"))
        with torch.inference_mode():
            rows.append(resize(spoil(vae, part, share=0.9)))
        if start % 640 == 0:
            print(f"redrawn {start}", flush=True)
            _write(file, rows, placed)
    _write(file, rows, placed)


def _write(file: Path, rows: list[Tensor], placed: drawing.Batch) -> None:
    pixels = torch.cat(rows)
    boxes = grounding.figure_boxes(placed)[: len(pixels)]
    partial = file.with_suffix(".part.npz")
    np.savez(partial, pixels=pixels.numpy(), boxes=boxes.numpy())
    os.replace(partial, file)


class Redrawn:
    """The pictures that `redraw` has written so far, read again when there are more."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._written = 0.0
        self._pictures: Pictures | None = None

    def __call__(self) -> Pictures | None:
        """The pictures, or None where there are none yet."""
        if self._file is None or not self._file.exists():
            return None
        written = self._file.stat().st_mtime
        if written != self._written:
            arrays = np.load(self._file)
            pixels, boxes = (torch.from_numpy(arrays[name]) for name in ("pixels", "boxes"))
            scenes = shard_scenes("redrawn", 0, len(pixels))[0]
            self._written, self._pictures = written, Pictures(pixels, scenes, boxes)
        return self._pictures


class Album:
    """The newest pictures: a part of those that are asked for are drawn anew, the others seen
    before. Drawing takes about half as long as the vision tower."""

    def __init__(self, rng: random.Random, redrawn: Callable[[], Pictures | None]) -> None:
        self._rng, self._redrawn = rng, redrawn
        self._kept: Pictures | None = None

    def take(self, count: int) -> Pictures:
        """So many pictures, shuffled only among those seen before."""
        ready = self._redrawn()
        again = round(count * REDRAWN) if ready is not None else 0
        wanted = count - again
        parts = [self._fresh(wanted)]
        if (missing := wanted - len(parts[0].scenes)) > 0 and self._kept is not None:
            parts.append(self._kept[self._rng.sample(range(len(self._kept.scenes)), missing)])
        if ready is not None:
            parts.append(ready[self._rng.sample(range(len(ready.scenes)), again)])
        return _joined(parts)

    def _fresh(self, wanted: int) -> Pictures:
        held = 0 if self._kept is None else len(self._kept.scenes)
        side = self._rng.choices([s for s, _ in SIDES], [w for _, w in SIDES])[0]
        new = draw(self._rng, wanted if held < wanted else round(wanted * NEW), side)
        kept = new if self._kept is None else _joined([new, self._kept])
        self._kept = kept[list(range(min(len(kept.scenes), ALBUM)))]
        return new


def _joined(parts: list[Pictures]) -> Pictures:
    return Pictures(
        torch.cat([part.pixels for part in parts]),
        [scene for part in parts for scene in part.scenes],
        torch.cat([part.boxes for part in parts]),
    )


class Source:
    """An endless stream of batches: rows of trees and the pictures they speak of."""

    def __init__(self, seed: int, redrawn: Callable[[], Pictures | None]) -> None:
        tokenizer = Qwen2Tokenizer.from_pretrained(export.QWEN_FOLDER)
        self._planter = trees.Planter(tokenizer)
        self._rng = random.Random(f"tune-{seed}")
        self.album = Album(self._rng, redrawn)
        self.seconds = 0.0
        """Spent on drawing and on words so far."""

    def _tree(self, number: int, seen: trees.Seen) -> trees.Tree:
        draw = self._rng.random()
        if draw < 0.03:
            return trees.silent_tree(self._rng)
        if draw < 0.06:
            return trees.tool_tree(self._rng, -1, None)
        if draw < 0.11:
            return trees.tool_tree(self._rng, number, seen)
        return trees.picture_tree(self._rng, number, seen)

    def __iter__(self) -> Iterator[tuple[trees.Rows, Pictures]]:
        ready: deque[tuple[trees.Rows, Pictures]] = deque()
        while True:
            start = time.process_time()
            if not ready:
                ready.extend(self._group())
            self.seconds += time.process_time() - start
            yield ready.popleft()

    def _group(self) -> list[tuple[trees.Rows, Pictures]]:
        pictures = self.album.take(GROUP)
        boxes = pictures.boxes.tolist()
        planted = [
            self._tree(number, trees.Seen(pictures.scenes[number], boxes[number]))
            for number in range(GROUP)
        ]
        flat = self._planter.flat(planted)
        order = sorted(range(GROUP), key=lambda number: flat[number].shape[1])
        batches = []
        while order:
            longest = flat[order[-1]].shape[1]
            size = max(1, TOKENS // longest)
            part, order = order[-size:], order[:-size]
            rows = self._planter.rows([planted[n] for n in part], [flat[n] for n in part])
            batches.append((rows, pictures))
        self._rng.shuffle(batches)
        return batches


class Places(nn.Module):
    """Reads boxes off picture tokens, in training only: numbers, and the tens of each corner."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.number = nn.Linear(width, 4)
        self.tens = nn.Linear(width, 4 * 15)

    def loss(self, seen: Tensor, boxes: Tensor) -> Tensor:
        """The mean loss over the tokens whose cell a figure's box lies in."""
        side = int(seen.shape[1] ** 0.5)
        edge = torch.arange(side) * float(CELL)
        across = (boxes[:, :, 0, None] < edge + CELL) & (boxes[:, :, 2, None] > edge)
        down = (boxes[:, :, 1, None] < edge + CELL) & (boxes[:, :, 3, None] > edge)
        inside = (down[:, :, :, None] & across[:, :, None, :]).flatten(2)  # [n, 2, cells]
        row, figure, cell = inside.nonzero(as_tuple=True)
        tokens, wanted = seen[row, cell], boxes[row, figure]
        tens = (wanted / 10).floor().long().clamp(0, 14)
        guessed = self.tens(tokens).view(-1, 15)
        near = F.smooth_l1_loss(self.number(tokens), wanted / 35 - 2, beta=0.1)
        return near + 0.25 * F.cross_entropy(guessed, tens.flatten())


def step_loss(
    forward: Forward, places: Places, rows: trees.Rows, pictures: Pictures, share: float
) -> Tensor:
    """The loss of one batch; `share` weighs the boxes read off the picture tokens."""
    shown = (rows.picture >= 0).nonzero()[:, 0]
    width = forward.model.config.text_config.hidden_size
    cells = forward.cells * forward.cells
    seen = torch.zeros(len(rows.ids), cells, width)
    extra = torch.zeros(())
    if len(shown):
        number = rows.picture[shown]
        patches = to_patches(pictures.pixels[number], frames=1)
        read = forward.see(noisy(patches))
        seen = seen.index_copy(0, shown, read.float())
        if share:
            extra = share * places.loss(read.float(), pictures.boxes[number])
    wanted = F.pad(rows.said[:, 1:] > 0, (0, 1))
    weights = (rows.said * _weights(rows.ids))[:, 1:][wanted[:, :-1]]
    logits = forward.read(seen, rows.ids, rows.slot, rows.position, rows.allowed(), wanted)
    losses = F.cross_entropy(logits.float(), rows.ids[:, 1:][wanted[:, :-1]], reduction="none")
    return (losses * weights).sum() / weights.sum() + extra


def _weights(ids: Tensor) -> Tensor:
    """Less for the last digit of a number: it can hardly be known, and would drown the rest."""
    is_digit = (ids >= DIGITS.start) & (ids < DIGITS.stop)
    is_last = is_digit & ~F.pad(is_digit[:, 1:], (0, 1))
    return torch.where(is_last, LAST_DIGIT, 1.0)


def look(
    model: Qwen2_5_VLForConditionalGeneration, places: Places, album: Album, plan: Plan
) -> None:
    """Train the vision tower alone to tell places, its picture tokens staying near the old ones."""
    forward = Forward(model)
    before = Forward(copy.deepcopy(model))

    def step() -> Tensor:
        pictures = album.take(LOOK)
        patches = noisy(to_patches(pictures.pixels, frames=1))
        seen = forward.see(patches).float()
        with torch.no_grad():
            wanted = before.see(patches).float()
        apart = F.mse_loss(seen, wanted) / wanted.var()
        return places.loss(seen, pictures.boxes) + KEEP * apart

    Trainer([model.model.visual, places], plan, "look").run([_narrow(step)])


def _narrow(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step in bf16 where that is faster."""

    def narrow() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return step()

    return narrow


def noisy(patches: Tensor) -> Tensor:
    """Patches with the light noise that the captioner was first trained with."""
    grain = 0.06 * torch.rand(len(patches), 1, 1).square()
    return patches + grain * torch.randn_like(patches)


def tune(
    model: Qwen2_5_VLForConditionalGeneration,
    places: Places,
    source: Source,
    plan: Plan,
    save: Callable[[], None] | None = None,
    share: float = 0.3,
) -> None:
    """Train the model in place. It ends in fp32 with its average weights."""
    forward = Forward(model)
    batches = iter(source)
    Trainer([model, places], plan, "tune").run(
        [_narrow(lambda: step_loss(forward, places, *next(batches), share))], save=save
    )
    model.eval()


def main() -> None:
    """Tune the committed weights, or make the re-drawn pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=Path, default=export.QWEN_FOLDER)
    parser.add_argument("--work", type=Path, default=Path(".work/tuned"))
    parser.add_argument("--look", type=float, default=400, help="seconds of the tower alone")
    parser.add_argument("--seconds", type=float, default=3000)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--freeze", action="store_true", help="leave the vision tower as it is")
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--redrawn", type=Path)
    parser.add_argument("--redraw", type=int, help="write so many re-drawn pictures, and stop")
    args = parser.parse_args()
    if args.redraw:
        redraw(args.redrawn, args.redraw)
        return
    torch.manual_seed(args.seed)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32)
    places = Places(model.config.text_config.hidden_size)
    source = Source(args.seed, Redrawn(args.redrawn))

    def save() -> None:
        model.save_pretrained(args.work)

    if args.look:
        plan = Plan(steps=10**9, seconds=args.look, rate=args.rate * 1.5, warmup=20, average=0.98,
                    report_every=10)  # fmt: skip
        look(model, places, source.album, plan)
        model.save_pretrained(args.work.with_name(args.work.name + "-look"))
    model.model.visual.requires_grad_(not args.freeze)
    plan = Plan(steps=10**9, seconds=args.seconds, rate=args.rate, warmup=50, average=0.99,
                report_every=50)  # fmt: skip
    tune(model, places, source, plan, save, args.share)
    print(f"drawing and words: {source.seconds:.0f} s", flush=True)
    save()


if __name__ == "__main__":
    main()
