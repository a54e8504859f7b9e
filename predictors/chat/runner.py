"""Launches passes: packs what the engine asks into tensors, picks the shape, hands back tokens that
are still on the device. Knows slots, not callers.

Every pass has its shapes from a list that `warm` walks: decode widths, chunk widths. On a GPU each
is one CUDA graph, and several prompts share a pass; elsewhere a pass is a plain or compiled
function of one prompt. Nothing here asks the device for a value. Engine thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from predictors.chat.decoder.decoder import Decoder
from predictors.chat.decoder.paged import SCRATCH_PAGE, TILE
from predictors.chat.device_state import Slots
from predictors.chat.kv_cache import Limits
from predictors.chat.model import EncodedPicture
from predictors.chat.passes import PACK_PIECES, Passes, num_prompt_ints
from predictors.chat.request import Sampling
from predictors.chat.token_choice import WAYS, Choice, choose, packed, way_for
from predictors.compute.compile.compiling import compiled
from predictors.compute.device.finite import DAMAGED
from predictors.compute.device.graphs import Captured, Graphs
from predictors.compute.device.placement import Placement
from predictors.compute.device.transfer import HostCopy, to_device, to_host_async
from predictors.compute.profiling.profiler import staged
from predictors.errors import EngineFailed

log = logging.getLogger(__name__)

GREEDY = Sampling(temperature=0.0)
EVERY_WAY = (GREEDY, Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=2))
"""One of each of WAYS."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence in a decode step: token number `index` of its answer goes to index `length` of
    its pages.

    `position` is the rotary one (all three axes agree after the prompt); `pages` are its pages;
    `choice` is about the token after it.
    """

    slot: int
    index: int
    position: int
    length: int
    pages: Sequence[int]
    choice: Choice


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of a prompt: `tokens` (n,) int64 and `positions` (3, n) int64 on the CPU, from index
    `start`.

    `pictures` are (first row, features) of this chunk; the last piece of a prompt has a `choice`.
    """

    slot: int
    start: int
    tokens: Tensor
    positions: Tensor
    pages: Sequence[int]
    pictures: Sequence[tuple[int, EncodedPicture]]
    choice: Choice | None


class Runner:
    """Owns the decoder and everything on the device. All methods launch work and return at once.

    `packs`: several prompts share a pass. `is_ahead`: a step may be launched before the one before
    it was read.
    """

    def __init__(
        self, decoder: Decoder, limits: Limits, placement: Placement, graphs: Graphs
    ) -> None:
        self.limits = limits
        self.decode_widths = limits.decode_widths
        self.packs = self.is_ahead = placement.is_cuda
        self._placement = placement
        self._move = partial(to_device, placement=placement)
        self._decoder = decoder
        self._graphs = graphs
        self._slots = Slots(limits, decoder.shape.vocab, placement.device)
        self._passes = Passes(decoder, self._slots, limits, placement)
        self._captured: dict[tuple[str, int], Captured[Tensor]] = {}
        self._step = compiled(self._passes.step, placement, "qwen_vl.decode")
        self._prompt = compiled(self._passes.prompt, placement, "qwen_vl.prefill")
        self._ways = {
            way: partial(choose, compiled(pick, placement, f"qwen_vl.{way}"), self._slots)
            for way, pick in WAYS.items()
        }

    # -- prompts ---------------------------------------------------------------------------------
    @torch.no_grad()
    def begin(self, slot: int, pages: Sequence[int], prompt: Tensor) -> None:
        """Make `slot` ready for a prompt (n,) int64. May be repeated."""
        self._slots.begin(slot, pages, prompt, self._move)

    @staged("prefill")
    @torch.no_grad()
    def prefill(self, pieces: Sequence[Piece], width: int) -> Tensor:
        """Read pieces in one pass of `width` rows (off a GPU each in its own); the first tokens
        (pieces with a choice,) int64 of the answers."""
        choices = [piece.choice for piece in pieces if piece.choice is not None]
        if self._placement.is_cuda:
            logits = self._read_packed(pieces, width)
        else:
            read = [self._read(piece, width) for piece in pieces]
            logits = torch.cat([x for x, p in zip(read, pieces, strict=True) if p.choice] or read)
        return self._choose(logits, choices)

    def _read(self, piece: Piece, width: int) -> Tensor:
        """One piece; logits (1, vocab) after its last token."""
        n = len(piece.tokens)
        columns = torch.zeros(5, width, dtype=torch.int64)  # tokens, three axes, places
        columns[0, :n] = piece.tokens
        columns[1:4, :n] = piece.positions
        columns[4, :n] = self._places(piece.pages, piece.start, n)
        tokens, positions, places = columns.split((1, 3, 1))
        embedded = self._decoder.embedding(tokens[0])
        deepstack = self._deepstack(width)
        _put_pictures([piece], [0], embedded, deepstack)
        table = self._slots.tables[piece.slot : piece.slot + 1]
        span, last = torch.tensor([[piece.start, n]]), torch.tensor([n - 1])
        given = (embedded, positions, last, places[0], table, span)
        return self._prompt(*given) if deepstack is None else self._prompt(*given, deepstack)

    def _deepstack(self, width: int) -> Tensor | None:
        """Zeros (levels, width, hidden) for a pass's DeepStack features; None in models without."""
        shape, kind = self._decoder.shape, self._placement
        if not shape.deepstack:
            return None
        size = (shape.deepstack, width, shape.hidden)
        return torch.zeros(size, dtype=kind.dtype, device=kind.device)

    def _read_packed(self, pieces: Sequence[Piece], width: int) -> Tensor:
        """Logits (PACK_PIECES, vocab), those of pieces with a choice first."""
        columns = torch.zeros(5, width, dtype=torch.int64)
        tiles = torch.zeros(3, width // TILE, dtype=torch.int64)
        tiles[0] = self._slots.nobody
        last = torch.zeros(PACK_PIECES, dtype=torch.int64)
        first = ended = 0
        firsts = []
        for piece in pieces:
            n = len(piece.tokens)
            columns[0, first : first + n] = piece.tokens
            columns[1:4, first : first + n] = piece.positions
            columns[4, first : first + n] = self._places(piece.pages, piece.start, n)
            starts = torch.arange(0, n, TILE)
            part = slice(first // TILE, first // TILE + len(starts))
            tiles[0, part] = piece.slot
            tiles[1, part] = piece.start + starts
            tiles[2, part] = (n - starts).clamp(max=TILE)
            if piece.choice is not None:
                last[ended] = first + n - 1
                ended += 1
            firsts.append(first)
            first += len(starts) * TILE
        ints = torch.cat((columns.flatten(), tiles.flatten(), last))
        return self._launch_prompt(pieces, firsts, width, ints)

    def _launch_prompt(
        self, pieces: Sequence[Piece], firsts: Sequence[int], width: int, ints: Tensor
    ) -> Tensor:
        run = self._captured["prefill", width]
        if not run.inputs:
            raise RuntimeError("the graphs were closed")
        embedded, placed, *rest = run.inputs
        placed.copy_(ints.pin_memory(), non_blocking=True)
        torch.index_select(self._decoder.embedding.weight, 0, placed[:width], out=embedded)
        deepstack = rest[0].zero_() if rest else None
        _put_pictures(pieces, firsts, embedded, deepstack)
        return run(*run.inputs)

    def _places(self, pages: Sequence[int], start: int, n: int) -> Tensor:
        """Where tokens start .. start + n of a sequence lie in the cache."""
        index = torch.arange(start, start + n)
        size = self.limits.page_tokens
        return torch.tensor(pages)[index // size] * size + index % size

    # -- answers ---------------------------------------------------------------------------------
    @staged("decode")
    @torch.no_grad()
    def decode(self, rows: Sequence[Row]) -> Tensor:
        """One more token (len(rows),) int64 of each sequence; at most the largest of
        `decode_widths` rows."""
        logits = self.step_logits(rows)
        return self._choose(logits, [row.choice for row in rows])

    def step_logits(self, rows: Sequence[Row]) -> Tensor:
        """Logits (width, vocab) after the newest token of each sequence: its rows first, then
        padding."""
        width = next(w for w in self.decode_widths if w >= len(rows))
        nobody = (self._slots.nobody, 0, 0, 0)
        columns = [(row.slot, row.length, row.position, row.index) for row in rows]
        columns += [nobody] * (width - len(rows))
        ints = torch.tensor(columns).T.contiguous()
        if self._placement.is_cuda:
            return self._captured["decode", width](ints.pin_memory())
        slots, _, positions, indices = ints.unbind()
        size = self.limits.page_tokens
        padding = width - len(rows)
        placed = [row.pages[row.length // size] * size + row.length % size for row in rows]
        places = torch.tensor(placed + [SCRATCH_PAGE * size] * padding)
        spans = torch.tensor([(row.length, 1) for row in rows] + [(0, 0)] * padding)
        tokens = self._slots.fed(slots, indices)
        tables = self._slots.tables.index_select(0, slots)
        return self._step(tokens, positions, places, tables, spans)

    def _choose(self, logits: Tensor, choices: Sequence[Choice]) -> Tensor:
        """The next token (len(choices),) int64 for the first rows of `logits` (rows, vocab)."""
        if not choices:
            return torch.empty(0, dtype=torch.int64, device=logits.device)
        way, nobody = way_for(choices), self._slots.nobody
        width = len(logits)
        if self._placement.is_cuda:
            width = next(w for w in self._choice_widths() if w >= len(choices))
        ints, floats = packed(choices, width, logits.shape[1], nobody)
        if self._placement.is_cuda:
            tokens = self._captured[way, width](ints.pin_memory(), floats.pin_memory())
            return tokens[: len(choices)].clone()  # the next pass uses this memory
        return self._ways[way](logits, ints, floats)[: len(choices)]

    def copy(self, tokens: Tensor) -> HostCopy:
        """Begin to bring `tokens` to the host; the only way values leave."""
        return to_host_async(tokens)

    # -- invariance ------------------------------------------------------------------------------
    def settle_width(self) -> None:
        """Where a step must be the same for everybody: the one width whose rows agree, or one."""
        self.packs = False  # how a prompt is cut must not depend on others either
        self.decode_widths = self.decode_widths[-1:]
        if not self.rows_agree():
            log.warning("rows of a decode step differ in bits on this machine; decoding one by one")
            self.decode_widths = (1,)

    @torch.no_grad()
    def rows_agree(self) -> bool:
        """Whether a sequence gets the same bits on every row, whoever is on the others.

        A matmul's kernel may treat its last rows differently. To be asked before the first
        admission, since it writes to pages.
        """
        token = min(self._decoder.shape.vocab, 1000) - 1
        width = min(self.decode_widths[-1], self.limits.slots, self.limits.num_pages)
        rows = [Row(i, 0, 7 * i, 0, [1 + i], Choice(i, GREEDY, 0, 1)) for i in range(width)]
        for row in rows:
            self.begin(row.slot, row.pages, torch.tensor([0]))
            self._slots.feed[row.slot] = (token - row.slot) % (token + 1)
        whole = self.step_logits(rows).clone()
        for turn in range(1, len(rows)):
            turned = self.step_logits(rows[turn:] + rows[:turn])
            if not torch.equal(turned[: len(rows)].roll(turn, 0), whole[: len(rows)]):
                return False
        alone = torch.cat([self.step_logits([row])[:1].clone() for row in rows])
        return torch.equal(alone, whole[: len(rows)])

    # -- warm-up ---------------------------------------------------------------------------------
    def warm_shapes(self) -> list[tuple[str, Callable[[], object]]]:
        """Name and run of every promised shape, the largest first: they share one pool."""
        prompts, steps = self.limits.chunk_widths[::-1], self.decode_widths[::-1]
        shapes: list[tuple[str, Callable[[], object]]] = []
        if self._placement.is_cuda:
            for width in self._choice_widths()[::-1]:
                shapes += [
                    (f"{way} x{width}", partial(self._capture_way, way, width)) for way in WAYS
                ]
        shapes += [(f"prefill {w}", partial(self._warm_prefill, w)) for w in prompts]
        return shapes + [(f"decode x{w}", partial(self._warm_decode, w)) for w in steps]

    def _choice_widths(self) -> tuple[int, ...]:
        powers = [2**i for i in range(PACK_PIECES.bit_length())]
        return tuple(sorted({*self.limits.decode_widths, *powers}))

    def _capture(self, name: str, width: int, run: Callable[..., Tensor], *like: Tensor) -> None:
        if (name, width) not in self._captured:
            captured = self._graphs.capture(run, like, f"{name} {width}")
            self._captured[name, width] = captured

    def _capture_way(self, way: str, width: int) -> None:
        ints, floats = packed([], width, self._decoder.shape.vocab, self._slots.nobody)
        self._capture(
            way, width, self._passes.fused_choice(way, width), self._move(ints), self._move(floats)
        )

    def _warm_decode(self, width: int) -> None:
        pages = [SCRATCH_PAGE] * self.limits.pages_per_slot
        if self._placement.is_cuda:
            ints = torch.tensor([[self._slots.nobody], [0], [0], [0]]).expand(4, width)
            self._capture("decode", width, self._passes.fused_step, self._move(ints.contiguous()))
        everybody = [i % self.limits.slots for i in range(width)]
        for sampling in EVERY_WAY:
            choices = [Choice(i, sampling, 0, 1) for i in everybody]
            rows = [Row(c.slot, 0, 0, 0, pages, c) for c in choices]
            self._check(self.decode(rows), f"decode x{width}")

    def _warm_prefill(self, width: int) -> None:
        n = min(width, self.limits.max_context)
        if self._placement.is_cuda:
            hidden, kind = self._decoder.shape.hidden, self._placement
            embedded = torch.zeros(width, hidden, dtype=kind.dtype, device=kind.device)
            ints = self._move(torch.zeros(num_prompt_ints(width), dtype=torch.int64))
            deepstack = self._deepstack(width)
            more = () if deepstack is None else (deepstack,)
            self._capture("prefill", width, self._passes.fused_prompt, embedded, ints, *more)
        tokens, positions = torch.zeros(n, dtype=torch.int64), torch.zeros(3, n).long()
        pages = [SCRATCH_PAGE] * self.limits.pages_per_slot
        for sampling in EVERY_WAY:
            piece = Piece(0, 0, tokens, positions, pages, (), Choice(0, sampling, 0, 0))
            self._check(self.prefill([piece], width), f"prefill {width}")

    def _check(self, tokens: Tensor, what: str) -> None:
        """Raise `EngineFailed` for tokens of a warm-up that no model would choose. Waits."""
        found, vocab = self.copy(tokens).result().tolist(), self._decoder.shape.vocab
        if not all(0 <= token < vocab for token in found):
            raise EngineFailed(f"the logits of warm-up {what} are not finite; {DAMAGED}")


def _put_pictures(
    pieces: Sequence[Piece], firsts: Sequence[int], embedded: Tensor, deepstack: Tensor | None
) -> None:
    """Write the pictures of pieces that begin at rows `firsts` into `embedded` (rows, hidden), and
    their other levels into `deepstack` (levels, rows, hidden)."""
    for piece, start in zip(pieces, firsts, strict=True):
        for first, picture in piece.pictures:
            rows = slice(start + first, start + first + len(picture.embedding))
            embedded[rows] = picture.embedding
            if deepstack is not None:
                deepstack[:, rows] = picture.deepstack
