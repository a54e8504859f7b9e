"""The compiled passes and what lives on the device: KV pages, page tables, penalty counts. Knows
slots, not callers.

Every pass has its shapes from a list that `warm` walks: decode widths, chunk widths. The vision
tower runs eagerly, since pictures come in any grid; its plans are cached per grid. Nothing here
asks the device for a value except `read`. Engine thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from predictors.compute.compiling import compiled
from predictors.compute.device import Placement
from predictors.compute.profiling import staged
from predictors.compute.transfer import to_device, to_host_async
from predictors.qwen_vl.kv_cache import Limits
from predictors.qwen_vl.modules.decoder import Decoder, TextShape
from predictors.qwen_vl.modules.paged import SCRATCH_PAGE
from predictors.qwen_vl.modules.vision import GridPlan, VisionTower, plan_grid
from predictors.qwen_vl.request import Sampling
from predictors.qwen_vl.sampling import Draw, Penalties, greedy, noise_key, sampled
from predictors.qwen_vl.weights import Architecture
from predictors.settings import InvalidSetting, QwenVLSettings

CPU_CONTEXT, GPU_CONTEXT = 4096, 32768
KV_SHARE = 0.8  # of the memory that is free once the weights are there
GRID_PLANS = 256  # cached; a plan of 1024x1024 pixels takes 3.6 MB


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence in a decode step: its newest `token`, which goes to index `length` of its pages.

    `position` is the rotary one (all three axes agree after the prompt); `pages` are its pages.
    """

    slot: int
    token: int
    position: int
    length: int
    pages: Sequence[int]


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of a prompt: `tokens` (n,) int64 and `positions` (3, n) int64 on the CPU, from index
    `start`.

    `pictures` are (first row, embeddings (rows, hidden)) of this chunk; `width` is the compiled
    shape.
    """

    slot: int
    start: int
    width: int
    tokens: Tensor
    positions: Tensor
    pages: Sequence[int]
    pictures: Sequence[tuple[int, Tensor]]


@dataclass(frozen=True, slots=True)
class Choice:
    """How the next token of the sequence in `slot` is chosen; `position` counts its answer's
    tokens.
    """

    slot: int
    sampling: Sampling
    seed: int
    position: int


NOBODY = Choice(0, Sampling(temperature=0.0), 0, 0)  # padding


class Runner:
    """Owns the modules and everything on the device. All methods launch work and return at once,
    but `read`.
    """

    def __init__(
        self, decoder: Decoder, vision: VisionTower, limits: Limits, placement: Placement
    ) -> None:
        self.limits = limits
        self.decode_widths = limits.decode_widths
        self._placement = placement
        self._move = partial(to_device, placement=placement)
        self._decoder = decoder
        self._vision = vision
        shape, device = decoder.shape, placement.device
        place = partial(torch.zeros, device=device)
        pool = (2, 1 + limits.num_pages, limits.page_tokens, shape.kv_heads, shape.head_dim)
        self._caches = [place(pool, dtype=placement.dtype) for _ in range(shape.layers)]
        self._tables = place((limits.slots, limits.pages_per_slot), dtype=torch.int64)
        self._seen = place((limits.slots, shape.vocab), dtype=torch.bool)
        self._counts = place((limits.slots, shape.vocab), dtype=torch.float32)
        self._plan = lru_cache(maxsize=GRID_PLANS)(self._make_plan)
        self._decode = compiled(decoder.decode, placement, "qwen_vl.decode")
        self._prefill = compiled(decoder.prefill, placement, "qwen_vl.prefill")
        self._greedy = compiled(greedy, placement, "qwen_vl.greedy")
        self._sampled = compiled(sampled, placement, "qwen_vl.sampled")

    # -- pictures --------------------------------------------------------------------------------
    @staged("vision")
    @torch.no_grad()
    def encode(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decoder tokens (merged, hidden) of one picture's `patches` (patches, values) fp32 on the
        CPU.
        """
        placed = to_device(patches, self._placement, self._placement.dtype)
        tokens: Tensor = self._vision(placed, self._plan(grid))
        return tokens

    def _make_plan(self, grid: tuple[int, int]) -> GridPlan:
        return plan_grid(*grid, self._vision.shape).moved(self._move)

    # -- prompts ---------------------------------------------------------------------------------
    @torch.no_grad()
    def begin(self, slot: int, pages: Sequence[int], prompt: Tensor) -> None:
        """Make `slot` ready for a prompt (n,) int64. May be repeated."""
        table = torch.full((self.limits.pages_per_slot,), SCRATCH_PAGE)
        table[: len(pages)] = torch.tensor(pages)
        self._tables[slot].copy_(self._move(table))
        self._seen[slot].zero_().index_fill_(0, self._move(prompt), True)
        self._counts[slot].zero_()

    @staged("prefill")
    @torch.no_grad()
    def prefill(self, piece: Piece) -> Tensor:
        """Read one chunk; logits (1, vocab) after its last token."""
        n, width = len(piece.tokens), piece.width
        packed = torch.zeros(5, width, dtype=torch.int64)  # tokens, three axes, places
        packed[0, :n] = piece.tokens
        packed[1:4, :n] = piece.positions
        packed[4, :n] = self._places(piece.pages, piece.start, n)
        tokens, positions, places = self._move(packed).split((1, 3, 1))
        embedded = self._decoder.embedding(tokens[0])
        for first, rows in piece.pictures:
            embedded[first : first + len(rows)] = rows
        return self._prefill(
            embedded,
            positions,
            self._move(torch.tensor([n - 1])),
            self._caches,
            places[0],
            self._tables[piece.slot : piece.slot + 1],
            torch.tensor([[piece.start, n]]),
        )

    def _places(self, pages: Sequence[int], start: int, n: int) -> Tensor:
        """Where tokens start .. start + n of a sequence lie in the cache."""
        index = torch.arange(start, start + n)
        size = self.limits.page_tokens
        return torch.tensor(pages)[index // size] * size + index % size

    # -- answers ---------------------------------------------------------------------------------
    @staged("decode")
    @torch.no_grad()
    def decode(self, rows: Sequence[Row]) -> Tensor:
        """Logits (width, vocab) after one more token of each sequence: its rows first, then
        padding.

        At most the largest of `decode_widths` rows.
        """
        width = next(w for w in self.decode_widths if w >= len(rows))
        size = self.limits.page_tokens
        columns = [
            (
                row.token,
                row.position,
                row.pages[row.length // size] * size + row.length % size,
                row.slot,
            )
            for row in rows
        ]
        columns += [(0, 0, 0, 0)] * (width - len(rows))  # nobody: writes to the scratch page
        spans = [(row.length, 1) for row in rows] + [(0, 0)] * (width - len(rows))
        packed = self._move(torch.tensor(columns).T.contiguous())
        tokens, positions, places, slots = packed.unbind()
        tables = self._tables.index_select(0, slots)
        return self._decode(tokens, positions, self._caches, places, tables, torch.tensor(spans))

    @torch.no_grad()
    def choose(self, logits: Tensor, choices: Sequence[Choice]) -> Tensor:
        """The next token (len(choices),) int64 for the first rows of `logits` (width, vocab)."""
        width, vocab = logits.shape
        padded = [*choices, *[NOBODY] * (width - len(choices))]
        ints = [_ints(choice, vocab) for choice in padded]
        floats = [_floats(choice.sampling) for choice in padded]
        slots, top_k, key, is_greedy = self._move(torch.tensor(ints)).T[..., None].unbind()
        values = self._move(torch.tensor(floats)).T[..., None].unbind()
        seen, counts = (x.index_select(0, slots[:, 0]) for x in (self._seen, self._counts))
        penalties = Penalties(values[0], values[1], values[2], seen, counts)
        if all(c.sampling.is_greedy for c in choices):
            return self._greedy(logits, penalties)[: len(choices)]
        draw = Draw(values[3], values[4], top_k, key, is_greedy.bool())
        return self._sampled(logits, penalties, draw)[: len(choices)]

    @torch.no_grad()
    def commit(self, slots: Sequence[int], tokens: Tensor) -> None:
        """Count the chosen `tokens` (len(slots),). The one thing that may not be repeated."""
        rows = self._move(torch.tensor(slots))
        self._seen.index_put_((rows, tokens), torch.ones_like(rows, dtype=torch.bool))
        ones = torch.ones_like(rows, dtype=torch.float32)
        self._counts.index_put_((rows, tokens), ones, accumulate=True)

    def read(self, tokens: Tensor) -> list[int]:
        """The values of `tokens` (n,): the only wait for the device in a step."""
        values: list[int] = to_host_async(tokens).result().tolist()
        return values

    # -- invariance ------------------------------------------------------------------------------
    @torch.no_grad()
    def rows_agree(self) -> bool:
        """Whether a sequence gets the same bits on every row, whoever is on the others.

        A matmul's kernel may treat its last rows differently. To be asked before the first
        admission, since it writes to pages.
        """
        token = min(self._decoder.shape.vocab, 1000) - 1
        width = min(self.decode_widths[-1], self.limits.slots, self.limits.num_pages)
        rows = [Row(i, (token - i) % (token + 1), 7 * i, 0, [1 + i]) for i in range(width)]
        for row in rows:
            self.begin(row.slot, row.pages, torch.tensor([row.token]))
        whole = self.decode(rows)
        for turn in range(1, len(rows)):
            turned = self.decode(rows[turn:] + rows[:turn])
            if not torch.equal(turned[: len(rows)].roll(turn, 0), whole[: len(rows)]):
                return False
        alone = torch.cat([self.decode([row])[:1] for row in rows])
        return torch.equal(alone, whole[: len(rows)])

    # -- warm-up ---------------------------------------------------------------------------------
    def warm_shapes(self) -> list[tuple[str, Callable[[], object]]]:
        """Name and run of every promised shape."""
        shapes = [(f"decode x{w}", partial(self._warm_decode, w)) for w in self.decode_widths]
        shapes += [
            (f"prefill {w}", partial(self._warm_prefill, w)) for w in self.limits.chunk_widths
        ]
        return [*shapes, ("vision", self._warm_vision)]

    def _warm_vision(self) -> None:
        shape = self._vision.shape
        side = shape.merge * (
            shape.window // shape.patch // shape.merge + 1
        )  # more than one window
        self.read(
            self.encode(torch.zeros(side * side, shape.patch_values), (side, side))[:1, 0].long()
        )

    def _warm_decode(self, width: int) -> None:
        pages = [SCRATCH_PAGE] * self.limits.pages_per_slot
        logits = self.decode([Row(i % self.limits.slots, 0, 0, 0, pages) for i in range(width)])
        self._warm_choice(logits)

    def _warm_prefill(self, width: int) -> None:
        n = min(width, self.limits.max_context)
        tokens, positions = torch.zeros(n, dtype=torch.int64), torch.zeros(3, n).long()
        pages = [SCRATCH_PAGE] * self.limits.pages_per_slot
        self._warm_choice(self.prefill(Piece(0, 0, width, tokens, positions, pages, ())))

    def _warm_choice(self, logits: Tensor) -> None:
        for temperature in (0.0, 1.0):
            sampling = Sampling(temperature=temperature)
            choices = [Choice(0, sampling, 0, 0)] * len(logits)
            self.read(self.choose(logits, choices))


def max_context(architecture: Architecture, settings: QwenVLSettings, placement: Placement) -> int:
    """Most tokens of prompt and answer together."""
    usual = GPU_CONTEXT if placement.is_cuda else CPU_CONTEXT
    return min(settings.max_context or usual, architecture.text.max_positions)


def is_deterministic(settings: QwenVLSettings, placement: Placement) -> bool:
    """Whether decoding keeps one width, so that neighbours never change a bit."""
    if settings.deterministic not in {"auto", "on", "off"}:
        raise InvalidSetting(
            f"qwen_vl.deterministic must be auto, on or off, not {settings.deterministic!r}"
        )
    is_cheap = not placement.is_cuda and placement.dtype == torch.float32
    return settings.deterministic == "on" or (settings.deterministic == "auto" and is_cheap)


def free_pages(text: TextShape, page_tokens: int, placement: Placement) -> int | None:
    """KV pages that a GPU has memory for once the weights are there; None on the CPU."""
    if not placement.is_cuda:
        return None
    values = 2 * text.layers * text.kv_heads * text.head_dim * page_tokens
    free, _ = torch.cuda.mem_get_info(placement.device)
    return int(free * KV_SHARE) // (values * placement.dtype.itemsize)


def _ints(choice: Choice, vocab: int) -> tuple[int, int, int, bool]:
    top_k = choice.sampling.top_k
    key = noise_key(choice.seed, choice.position)
    return choice.slot, min(top_k, vocab) if top_k > 0 else vocab, key, choice.sampling.is_greedy


def _floats(sampling: Sampling) -> tuple[float, float, float, float, float]:
    return (
        sampling.repetition_penalty,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        1.0 if sampling.is_greedy else sampling.temperature,
        sampling.top_p,
    )
