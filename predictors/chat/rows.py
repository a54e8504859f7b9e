"""The rows of the decoder's passes: a sequence in a decode step, and a part of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from predictors.chat.adapters.changes import SlotScales, dense_weights
from predictors.chat.adapters.tables import AdapterTables
from predictors.chat.choices import Choices, TokenChoice
from predictors.chat.decoder.paged import SCRATCH_PAGE, TILE
from predictors.chat.decoder.passes import num_prompt_ints
from predictors.chat.model import EncodedPicture
from predictors.chat.request import Sampling
from predictors.chat.scheduling import PACK_PROMPTS
from predictors.compute.device.graphs import Captured


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The sequences (n) of a decode step. `ints` (4, n) int64: slot, length, position, index. Token
    number `index` of an answer is stored at index `length` of its slot's pages; `position` is the
    rotary one (all three axes agree after the prompt). `choices` are about the following tokens.
    `adapters` are those of the language model: of each row, or of none.
    """

    ints: NDArray[np.int64]
    choices: Choices
    adapters: Sequence[SlotScales] = ()

    def __len__(self) -> int:
        return len(self.choices)

    def take(self, rows: Sequence[int]) -> DecodeRows:
        """These rows, in this order."""
        adapters = [self.adapters[row] for row in rows] if self.adapters else ()
        return DecodeRows(self.ints[:, rows], self.choices.take(rows), adapters)


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A part of a prompt, from index `start`: `tokens` (n,) int64, `positions` (3, n) int64.

    `pictures` are (first row, features) in this part; the last part of a prompt has a `choice`.
    `adapters` are those of the language model.
    """

    slot: int
    start: int
    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    pages: Sequence[int]
    pictures: Sequence[tuple[int, EncodedPicture]]
    choice: TokenChoice | None
    adapters: SlotScales = ()

    def put_columns(self, columns: NDArray[np.int64], page_tokens: int) -> None:
        """Write tokens, positions (three axes) and places in the cache to `columns` (5, n)."""
        columns[0] = self.tokens
        columns[1:4] = self.positions
        first, end = self.start // page_tokens, self.start + len(self.tokens)
        pages = np.array(self.pages[first : -(-end // page_tokens)], np.int64) * page_tokens
        offset = self.start - first * page_tokens
        within = (pages[:, None] + np.arange(page_tokens)).ravel()
        columns[4] = within[offset : offset + len(self.tokens)]


def warm_rows(
    width: int, slot: int, vocab: int, sampling: Sampling, adapters: SlotScales = ()
) -> DecodeRows:
    """`width` rows of no request for warming, each in the padding's `slot`, whose cache is empty,
    and with these `adapters`."""
    slots = [slot] * width
    choices = Choices.of([TokenChoice(slot, sampling, 0, 1) for slot in slots], vocab)
    return DecodeRows(np.array([slots, *[[0] * width] * 3]), choices, [adapters] * width)


def warm_part(
    length: int, slot: int, num_pages: int, sampling: Sampling, adapters: SlotScales = ()
) -> PromptPart:
    """A whole prompt of so many tokens for warming, of no request, in the padding's `slot` and
    page."""
    tokens, positions = np.zeros(length, np.int64), np.zeros((3, length), np.int64)
    choice = TokenChoice(slot, sampling, 0, 0)
    return PromptPart(slot, 0, tokens, positions, [SCRATCH_PAGE] * num_pages, (), choice, adapters)


def choices_of(parts: Sequence[PromptPart], vocab: int) -> Choices:
    """The choices of the first tokens after these parts: of those that end a prompt."""
    return Choices.of([part.choice for part in parts if part.choice is not None], vocab)


def pack_prompts(
    parts: Sequence[PromptPart], width: int, page_tokens: int, padding: int
) -> tuple[Tensor, list[int]]:
    """The integers of a packed pass over `parts` in `width` rows, see
    `DecoderPasses.fused_prompt`, and each part's first row. `padding` is the slot of other
    rows.

    By numpy, since each of torch's operations lets go of the interpreter's lock, and the engine's
    thread would wait for a busy event loop after each.
    """
    num_tiles = width // TILE
    ints = np.zeros(num_prompt_ints(width), np.int64)
    columns = ints[: 5 * width].reshape(5, width)
    tiles = ints[5 * width : -PACK_PROMPTS].reshape(3, num_tiles)
    last = ints[-PACK_PROMPTS:]
    tiles[0] = padding
    first = ended = 0
    firsts = []
    for part in parts:
        n = len(part.tokens)
        part.put_columns(columns[:, first : first + n], page_tokens)
        starts = np.arange(0, n, TILE)
        own = slice(first // TILE, first // TILE + len(starts))
        tiles[0, own] = part.slot
        tiles[1, own] = part.start + starts
        tiles[2, own] = np.minimum(n - starts, TILE)
        if part.choice is not None:
            last[ended] = first + n - 1
            ended += 1
        firsts.append(first)
        first += len(starts) * TILE
    return torch.from_numpy(ints), firsts


def packed_weights(
    tables: AdapterTables, parts: Sequence[PromptPart], firsts: Sequence[int], width: int
) -> Tensor:
    """The weights (width, slots) of the parts' adapters, see `dense_weights`."""
    of_row = torch.zeros(width, dtype=torch.int64)
    for i, (part, first) in enumerate(zip(parts, firsts, strict=True)):
        of_row[first : first + len(part.tokens)] = i + 1
    return dense_weights(tables, [(), *(part.adapters for part in parts)])[of_row]


def replay_prompts(
    run: Captured[Tensor],
    embedding: Tensor,
    parts: Sequence[PromptPart],
    firsts: Sequence[int],
    *packed: Tensor,
) -> Tensor:
    """Write the inputs of a captured pass over `parts`, and replay it: their embeddings, `packed`,
    which are the pass's integers and, with adapters, their weights, and DeepStack's features, if
    the pass has an input for these. `embedding` (vocab, hidden)."""
    if not run.inputs:
        raise RuntimeError("the graphs were closed")
    embedded, placed, *rest = run.inputs
    for target, values in zip((placed, *rest), packed, strict=False):
        target.copy_(values.pin_memory(), non_blocking=True)
    torch.index_select(embedding, 0, placed[: len(embedded)], out=embedded)
    deepstack = rest[-1].zero_() if len(rest) == len(packed) else None
    put_pictures(parts, firsts, embedded, deepstack)
    return run(*run.inputs)


def put_pictures(
    parts: Sequence[PromptPart], firsts: Sequence[int], embedded: Tensor, deepstack: Tensor | None
) -> None:
    """Write the pictures of parts that begin at rows `firsts` into `embedded` (rows, hidden), and
    their other levels into `deepstack` (levels, rows, hidden)."""
    for part, start in zip(parts, firsts, strict=True):
        for first, picture in part.pictures:
            rows = slice(start + first, start + first + len(picture.embedding))
            embedded[rows] = picture.embedding
            if deepstack is not None:
                deepstack[:, rows] = picture.deepstack
