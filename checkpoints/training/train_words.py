"""Trains T5 on text alone to relate the words of a figure, as a real T5 is trained before FLUX.

Temporary heads read the figure's colour, kind, size and position from the state of every colour and
kind word. A penalty on the distance to the old states keeps them readable for the transformer.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from checkpoints.training import data, encoders, wording
from checkpoints.training.export import load_tokenizers
from checkpoints.training.loop import Plan, Step, Trainer
from checkpoints.training.scenes import KINDS, OPPOSITE, PALETTE, RELATIONS, SIZES, Figure, Scene
from checkpoints.training.scenes import sample as sample_scene

KINDS_OF_STEP = ((32, 48, 0.85), (64, 16, 0.15))
CLASSES = (len(PALETTE), len(KINDS), len(SIZES), len(RELATIONS))
NO_LABEL = -1
WEIGHTS = (1.0, 1.0, 1.0, 3.0)  # the position is the hardest to learn
OLD_STATES = 0.2  # weight of the penalty on the distance to the old states
SHARP = 8.0  # a bias that decides where a head looks
_NAMED = re.compile(rf"\b({'|'.join(PALETTE)}) ({'|'.join(KINDS)})\b", re.IGNORECASE)


def _named_figures(text: str, scene: Scene) -> list[tuple[re.Match[str], Figure, str | None]]:
    """The words of each figure in the text, and its position; empty if the text is ambiguous."""
    matches = list(_NAMED.finditer(text))
    found = [(m[1].lower(), m[2].lower()) for m in matches]
    if len(set(found)) != len(scene.figures) or len(matches) != len(scene.figures):
        return []
    for ordered in (scene, scene.flipped()):
        if [(figure.colour, figure.kind) for figure in ordered.figures] == found:
            places = (ordered.relation, ordered.relation and OPPOSITE[ordered.relation])
            return list(zip(matches, ordered.figures, places, strict=False))
    return []


def word_labels(tokenizer: T5Tokenizer, text: str, scene: Scene) -> tuple[list[int], Tensor]:
    """The text's ids and, for each token, colour, kind, size and place of the figure it names."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    labels = torch.full((len(encoded.input_ids), len(CLASSES)), NO_LABEL)
    for match, figure, place in _named_figures(text, scene):
        numbers = (
            list(PALETTE).index(figure.colour),
            KINDS.index(figure.kind),
            SIZES.index(figure.size),
            list(RELATIONS).index(place) if place else NO_LABEL,
        )
        for row, (start, end) in enumerate(encoded["offset_mapping"]):
            if match.start() < end and start < match.end() and start < end:
                labels[row] = torch.tensor(numbers)
    return list(encoded.input_ids), labels


def make_pool(count: int, device: str, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Ids [n, 64] and labels [n, 64, 4] of prompts of training scenes; 32 tokens are enough."""
    _, tokenizer = load_tokenizers()
    rng = random.Random(f"words-{seed}")
    length = data.PROMPT_LENGTH
    ids = torch.zeros((count, length), dtype=torch.long)
    labels = torch.full((count, length, len(CLASSES)), NO_LABEL)
    row = 0
    while row < count:
        scene = sample_scene(rng)
        some, marks = word_labels(tokenizer, wording.prompt(rng, scene), scene)
        if len(some) > KINDS_OF_STEP[0][0]:
            continue
        ids[row, : len(some)] = torch.tensor(some)
        labels[row, : len(some)] = marks
        row += 1
    return ids.to(device), labels.to(device)


@torch.no_grad()
def look_around(t5: T5EncoderModel) -> None:
    """Let the first two heads look at the neighbours, the others to one side, content second.

    Biases start so near zero, and scores of content so far from it, that order is not found alone.
    """
    for block in t5.encoder.block:
        block.layer[0].SelfAttention.q.weight.mul_(0.3)
    bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    after = bias.shape[0] // 2  # buckets below count back from a word, the rest on
    bias.zero_()
    bias[1, 0] = bias[after + 1, 1] = SHARP
    bias[after:, 2] = bias[1:after, 3] = -SHARP
    bias[0, 2:] = -SHARP / 4


def _loss(
    t5: T5EncoderModel,
    old: T5EncoderModel,
    heads: nn.Linear,
    pool: tuple[Tensor, Tensor],
    length: int,
    batch: int,
    buckets: Tensor,
) -> Tensor:
    ids, labels = pool
    row = torch.randint(len(ids), (batch,), device=ids.device)
    width = min(length, ids.shape[1])
    picked = F.pad(ids[row, :width], (0, length - width))
    states = encoders.t5_states(t5, picked, buckets)
    with torch.no_grad():
        before = encoders.t5_states(old, picked, buckets)
    loss = OLD_STATES * (states - before).float().square().mean()
    logits = heads(states[:, :width]).float().split(CLASSES, dim=-1)
    for number, scores in enumerate(logits):
        wanted = labels[row, :width, number].flatten()
        part = F.cross_entropy(scores.flatten(0, 1), wanted, ignore_index=NO_LABEL)
        loss = loss + WEIGHTS[number] * part
    return loss


def train_words(
    t5: T5EncoderModel,
    pool: tuple[Tensor, Tensor],
    plan: Plan,
    save: Callable[[], None] | None = None,
    seed: int = 104,
) -> None:
    """Train T5 in place. It ends in fp32 with its average weights."""
    torch.manual_seed(seed)
    heads = nn.Linear(t5.config.d_model, sum(CLASSES)).to(pool[0].device)
    old = copy.deepcopy(t5).requires_grad_(False)
    look_around(t5)
    trainer = Trainer([t5, heads], plan, "words")
    old.to(next(t5.parameters()).dtype)

    def make_step(length: int, batch: int) -> Step:
        buckets = encoders.t5_buckets(t5, length)
        return partial(_loss, t5, old, heads, pool, length, batch, buckets)

    trainer.run_kinds(KINDS_OF_STEP, make_step, seed, save)
