"""Conversations that share their beginning: one picture or one set of tools, several questions.

A tree is one row of a batch: its stem (system turn, tools, picture) is read once, and each branch
(a question, its answer and what follows) sees the stem and itself, at the places that it has when
it stands alone. So a row trains several conversations for the price of a long one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Tokenizer

from checkpoints.training import chat, grounding, structured, tool_talk, wording
from checkpoints.training.data import SYSTEMS
from checkpoints.training.grounding import Box
from checkpoints.training.scenes import Scene

Piece = tuple[str, bool]
"""Text, and True if the captioner says it."""
PAD_BRANCH = -1
SENTENCE = 4  # weight of its tokens: they are few beside those of JSON
NEXT = "\n<|im_start|>user\n"
REPLY = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class Tree:
    """A stem and its branches; `picture` is the number of the picture, -1 for none."""

    picture: int
    stem: list[Piece]
    branches: list[list[Piece]] = field(default_factory=list)


@dataclass(frozen=True)
class Seen:
    """A picture's scene and the boxes of its figures in read pixels."""

    scene: Scene
    boxes: Sequence[Box]


@dataclass(frozen=True)
class Rows:
    """Trees as arrays: ids, weights of what is said (0 of other tokens), branch numbers and slots
    [n, length], M-RoPE [n, 3, length], pictures [n]."""

    ids: Tensor
    said: Tensor
    branch: Tensor
    slot: Tensor
    position: Tensor
    picture: Tensor

    def take(self, rows: Tensor) -> Rows:
        """Some rows, in int64."""
        arrays = (self.ids, self.said, self.branch, self.slot, self.position, self.picture)
        return Rows(*(array[rows].long() for array in arrays))

    def allowed(self) -> Tensor:
        """The attention mask [n, 1, length, length]: backwards in the stem and one's branch."""
        key, query = self.branch[:, None, :], self.branch[:, :, None]
        length = self.ids.shape[1]
        place = torch.arange(length, device=self.ids.device)
        causal = place[:, None] >= place
        return (((key == 0) | (key == query)) & causal)[:, None]


def _turns(pairs: Sequence[tuple[str, str]]) -> list[Piece]:
    """The user's turns, the first one's opening left out, and the captioner's answers."""
    pieces: list[Piece] = []
    for question, answer in pairs:
        pieces.append(((NEXT if pieces else "") + question + REPLY, False))
        pieces.append((chat.answered(answer), True))
    return pieces


def _weight(answer: str) -> int:
    return 1 if answer.startswith(("[", "{", "<tool_call>")) else SENTENCE


def _system(rng: random.Random) -> str:
    return chat.SYSTEM if rng.random() < 0.92 else rng.choice(SYSTEMS)


def _old(rng: random.Random, seen: Seen) -> tuple[str, str]:
    return wording.question(rng, seen.scene)


def _json(rng: random.Random, seen: Seen) -> tuple[str, str]:
    return structured.list_shapes(rng, seen.scene)


def _locate(rng: random.Random, seen: Seen) -> tuple[str, str]:
    return grounding.locate(rng, seen.scene, seen.boxes)


def _where(rng: random.Random, seen: Seen) -> tuple[str, str]:
    return grounding.where(rng, seen.scene, seen.boxes)


ASKERS: tuple[Callable[[random.Random, Seen], tuple[str, str]], ...] = (
    _old, _old, _json, _locate, _where,
)  # fmt: skip


def picture_tree(rng: random.Random, number: int, seen: Seen) -> Tree:
    """Several questions about one picture, each a conversation of its own."""
    stem = chat.opening(_system(rng)) + "<|im_start|>user\n"
    if rng.random() < 0.12:  # the question before the picture, and further turns
        (question, answer), *more = [rng.choice(ASKERS)(rng, seen) for _ in range(2)]
        first = [(stem + question + chat.IMAGE + REPLY, False), (chat.answered(answer), True)]
        more = [(NEXT + question, answer) for question, answer in more]
        return Tree(number, [*first, *_turns(more)])
    tree = Tree(number, [(stem + chat.IMAGE, False)])
    for ask in (_old, _where, _locate if rng.random() < 0.7 else _old, rng.choice(ASKERS)):
        pairs = [ask(rng, seen)]
        if rng.random() < 0.15:
            pairs.append(_old(rng, seen))
        tree.branches.append(_turns(pairs))
    if rng.random() < 0.7:
        tree.branches.append(_turns([_json(rng, seen)]))
    return tree


def _silent(rng: random.Random, tools: Sequence[tool_talk.Tool]) -> tuple[str, str]:
    """A turn without a picture that none of the tools answers."""
    names = {tool.name for tool in tools}
    while True:
        draw = rng.random()
        if draw < 0.4:
            question, answer = wording.chat(rng)
        else:
            other = rng.choice(tool_talk.MAKERS)(rng)
            question, answer = other.use(rng).question, wording.LIMITS
            if other.name in names:
                continue
        if not ("count_shapes" in names and question in wording.COUNT):
            return question, answer


def _used(rng: random.Random, tool: tool_talk.Tool) -> list[tuple[str, str]]:
    use = tool.use(rng)
    pairs = [(use.question, chat.called(tool.name, use.arguments))]
    if rng.random() < 0.5:
        pairs.append((chat.responded(use.response), use.sentence))
    return pairs


def _beside_tools(
    rng: random.Random, seen: Seen, tools: Sequence[tool_talk.Tool]
) -> tuple[str, str]:
    """A question about the picture that none of the tools answers."""
    names = {tool.name for tool in tools}
    while True:
        question, answer = rng.choice(ASKERS)(rng, seen)
        if not ("count_shapes" in names and question in wording.COUNT):
            return question, answer


def tool_tree(rng: random.Random, number: int, seen: Seen | None) -> Tree:
    """Questions beside one set of tools: those that a tool answers, and others."""
    tools = tool_talk.choose(rng)
    stem = chat.opening(_system(rng), [tool.definition for tool in tools]) + "<|im_start|>user\n"
    tree = Tree(number, [(stem + (chat.IMAGE if seen else ""), False)])
    for _ in range(7):
        if rng.random() < 0.62:
            pairs = _used(rng, rng.choice(tools))
        else:
            pairs = [_beside_tools(rng, seen, tools) if seen else _silent(rng, tools)]
        tree.branches.append(_turns(pairs))
    return tree


def silent_tree(rng: random.Random) -> Tree:
    """Questions without a picture."""
    stem = chat.opening(_system(rng)) + "<|im_start|>user\n"
    return Tree(-1, [(stem, False)], [_turns([_silent(rng, ())]) for _ in range(6)])


class Planter:
    """Turns trees into arrays."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pad, self._image = (
            tokenizer.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|image_pad|>")
        )

    def flat(self, trees: Sequence[Tree]) -> list[np.ndarray]:
        """Each tree as [3, length]: ids, weights, branch numbers (0 is the stem)."""
        texts = [text for tree in trees for part in (tree.stem, *tree.branches) for text, _ in part]
        ids = iter(self._tokenizer(texts).input_ids)
        rows = []
        for tree in trees:
            columns: list[tuple[int, int, int]] = []
            for branch, part in enumerate((tree.stem, *tree.branches)):
                for text, marked in part:
                    weight = _weight(text) if marked else 0
                    columns += [(token, weight, branch) for token in next(ids)]
            rows.append(np.array(columns, np.int64).T)
        return rows

    def rows(
        self, trees: Sequence[Tree], flat: Sequence[np.ndarray], length: int | None = None
    ) -> Rows:
        """Trees padded to a length, or to that of the longest."""
        count = len(trees)
        length = length or max(row.shape[1] for row in flat)
        whole = np.zeros((3, count, length), np.int64)
        whole[0], whole[2] = self._pad, PAD_BRANCH
        for index, row in enumerate(flat):
            whole[:, index, : row.shape[1]] = row
        ids, said, branch = whole
        slot, position = self._places(ids, branch)
        return Rows(
            torch.from_numpy(ids),
            torch.from_numpy(said),
            torch.from_numpy(branch),
            torch.from_numpy(slot),
            torch.from_numpy(position),
            torch.tensor([tree.picture for tree in trees]),
        )

    def _places(self, ids: np.ndarray, branch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Picture slots, and positions: every branch goes on where the stem ends."""
        is_image = ids == self._image
        slot = np.where(is_image, is_image.cumsum(1) - 1, -1)
        side = int(chat.IMAGE_TOKENS**0.5)
        place = np.arange(ids.shape[1])
        position = np.zeros((len(ids), 3, ids.shape[1]), np.int64)
        for row, numbers in enumerate(branch):
            stem = int((numbers == 0).sum())
            plain = place.copy()
            for number in range(1, int(numbers.max()) + 1):
                mine = numbers == number
                plain[mine] = stem + np.arange(int(mine.sum()))
            if is_image[row].any():
                start = int(is_image[row].argmax())
                after = plain >= start + chat.IMAGE_TOKENS
                plain = np.where(after, plain - chat.IMAGE_TOKENS + side, plain)
                here, cell = is_image[row], slot[row]
                position[row, 0] = np.where(here, start, plain)
                position[row, 1] = np.where(here, start + cell // side, plain)
                position[row, 2] = np.where(here, start + cell % side, plain)
            else:
                position[row] = plain
        return slot, position
