"""Token arrays for training: prompts for the painter, conversations for the captioner.

Several processes build them from fixed seeds, as numpy arrays that are copied to the device once.
They hold only scenes of the training side of the split, and are the only source of training text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from checkpoints.training import chat, wording
from checkpoints.training.export import QWEN_FOLDER, load_tokenizers
from checkpoints.training.scenes import Scene, sample

SHARD = 10_000
PROMPT_LENGTH = 64
PROMPTS_PER_PICTURE = 2
TALK_LENGTH = 128
SYSTEMS = ("You describe pictures.", "Be brief.", "Answer in one sentence.", "You are a painter.",
           "You help people to see.")  # fmt: skip
Arrays = dict[str, np.ndarray]


def shard_scenes(name: str, shard: int, count: int) -> tuple[list[Scene], random.Random]:
    """The training scenes of one shard, and the random generator in its state after them."""
    rng = random.Random(f"{name}-{shard}")
    return [sample(rng) for _ in range(count)], rng


def prompt_stream(shard: int, count: int) -> Iterator[tuple[int, str]]:
    """Every prompt of a painter's shard with the number of its scene."""
    scenes, rng = shard_scenes("painter", shard, count)
    for row, scene in enumerate(scenes):
        for _ in range(PROMPTS_PER_PICTURE):
            yield row, wording.prompt(rng, scene)


def prompt_shard(shard: int, count: int) -> Arrays:
    """T5 and CLIP ids of a shard's prompts and the numbers of their pictures."""
    clip, t5 = load_tokenizers()
    rows, texts = zip(*prompt_stream(shard, count), strict=True)
    fixed = {"padding": "max_length", "max_length": PROMPT_LENGTH, "truncation": True,
             "return_tensors": "np"}  # fmt: skip
    return {
        "picture": np.array(rows, np.int64) + shard * SHARD,
        "t5": t5(list(texts), **fixed).input_ids.astype(np.int16),
        "clip": clip(list(texts), **fixed).input_ids.astype(np.int16),
    }


def _talk(rng: random.Random, scene: Scene) -> list[tuple[str, bool]]:
    """The parts of a conversation. Those marked True are the captioner's targets."""
    system = chat.SYSTEM if rng.random() < 0.92 else rng.choice(SYSTEMS)
    pieces = [(chat.opening(system), False)]
    silent = rng.random() < 0.08
    for turn in range(1 if silent else rng.choice((1, 2, 2, 3))):
        question, answer = wording.chat(rng) if silent else wording.question(rng, scene)
        image = chat.IMAGE if turn == 0 and not silent else ""
        asked = chat.asked(question, image, rng.random() < 0.85)
        pieces += [("\n" if turn else "", False), (asked, False), (chat.answered(answer), True)]
    return pieces


def talk_shard(shard: int, count: int) -> Arrays:
    """Ids, picture slots, positions and marks of a shard's conversations."""
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer.from_pretrained(QWEN_FOLDER)
    pad, image = (tokenizer.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|image_pad|>"))
    scenes, rng = shard_scenes("captioner", shard, count)
    talks = [_talk(rng, scene) for scene in scenes]
    flat = tokenizer([text for talk in talks for text, _ in talk]).input_ids
    ids = np.full((count, TALK_LENGTH), pad, np.int64)
    said = np.zeros((count, TALK_LENGTH), bool)
    cursor = 0
    for row, talk in enumerate(talks):
        used = 0
        for _, marked in talk:
            piece = flat[cursor][: TALK_LENGTH - used]
            ids[row, used : used + len(piece)] = piece
            said[row, used : used + len(piece)] = marked
            used += len(piece)
            cursor += 1
    slot, position = picture_places(ids, image)
    return {"ids": ids.astype(np.int16), "said": said, "slot": slot, "position": position}


def picture_places(ids: np.ndarray, image: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture token at each position ([n, length], -1 for none), and M-RoPE positions."""
    count, length = ids.shape
    side = int(chat.IMAGE_TOKENS**0.5)
    is_image = ids == image
    slot = np.where(is_image, is_image.cumsum(1) - 1, -1)
    place = np.broadcast_to(np.arange(length), (count, length))
    start = np.where(is_image.any(1), is_image.argmax(1), length)[:, None]
    after = place >= start + chat.IMAGE_TOKENS
    plain = np.where(after, place - chat.IMAGE_TOKENS + side, place)
    time = np.where(is_image, start, plain)
    row = np.where(is_image, start + slot // side, plain)
    column = np.where(is_image, start + slot % side, plain)
    position = np.stack((time, row, column), axis=1)
    return slot.astype(np.int8), position.astype(np.int16)


def gather(
    make: Callable[[int, int], Arrays], count: int, workers: int, shard: int = SHARD
) -> Arrays:
    """All shards of `count` scenes, made by several processes, in order."""
    sizes = [min(shard, count - start) for start in range(0, count, shard)]
    if workers <= 1:
        parts = [make(shard, size) for shard, size in enumerate(sizes)]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
            parts = list(pool.map(make, range(len(sizes)), sizes))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def all_scenes_of(name: str, count: int) -> list[Scene]:
    """The scenes of all shards, in the order in which `gather` numbers them."""
    found: list[Scene] = []
    for shard, start in enumerate(range(0, count, SHARD)):
        found += shard_scenes(name, shard, min(SHARD, count - start))[0]
    return found
