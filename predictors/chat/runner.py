"""Launches the decoder's passes: packs the rows of a step into tensors, picks the width and has
tokens chosen, which stay on the device.

Every pass has one of the widths that were warmed. On a GPU each width is one CUDA graph, and
several prompts share a pass; elsewhere a pass is a plain or compiled function of one prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from predictors.chat.adapters.changes import SlotScales, dense_weights, plain_scales
from predictors.chat.adapters.tables import AdapterTables
from predictors.chat.choices import widened
from predictors.chat.choosing import PassChoice, TokenChooser
from predictors.chat.decoder.decoder import Decoder
from predictors.chat.decoder.passes import DecoderPasses, num_prompt_ints
from predictors.chat.decoder.state import SlotReset, SlotState
from predictors.chat.limits import EngineLimits
from predictors.chat.logit_changes import MaskSource
from predictors.chat.mixed_passes import MixedPasses
from predictors.chat.promised import PassKind, PromisedPass
from predictors.chat.rows import (
    DecodeRows,
    PromptPart,
    choices_of,
    pack_prompts,
    packed_weights,
    put_pictures,
    replay_prompts,
    warm_part,
    warm_rows,
)
from predictors.chat.sampling import GREEDY, ONE_PER_SAMPLER
from predictors.compute.compile.compiling import compiled
from predictors.compute.device.graphs import Captured, Graphs
from predictors.compute.device.placement import (
    DAMAGED,
    HostCopy,
    LaunchMark,
    Placement,
    mark_launched,
    to_device,
    to_host_async,
)
from predictors.compute.profiling.profiler import staged
from predictors.errors import EngineFailed


class ChatRunner:
    """Owns the decoder, its pages and the state of all slots. Engine thread only.

    All methods launch work and return at once; none asks the device for a value. `packs`: several
    prompts share a pass. `is_ahead`: a step may be launched before the previous one was read.
    """

    def __init__(
        self,
        decoder: Decoder,
        limits: EngineLimits,
        placement: Placement,
        graphs: Graphs,
        tables: AdapterTables | None = None,
        end_tokens: Collection[int] = (),
    ) -> None:
        """`tables` are those of the adapters that rows may have; `end_tokens` the model's."""
        self.limits = limits
        self.chunk_widths, self.decode_widths = limits.chunk_widths, limits.decode_widths
        self.vocab = decoder.shape.vocab
        self.packs = self.is_ahead = placement.is_cuda
        self._placement = placement
        self._move = partial(to_device, placement=placement)
        self._decoder = decoder
        self._graphs = graphs
        slots, pages = limits.slots + limits.spare_slots, limits.pages_per_slot
        self._slots = SlotState(slots, pages, self.vocab, placement.device)
        self._tables = tables
        self._passes = DecoderPasses(decoder, self._slots, limits, placement, tables)
        self.chooser = TokenChooser(
            self._passes, self._slots, limits, placement, graphs, end_tokens
        )
        self.mixed = MixedPasses(
            decoder, self._passes, self.chooser, limits, placement, graphs, self._slots.padding
        )
        self._captured: dict[tuple[str, int], Captured[Tensor]] = {}
        self._decode = compiled(self._passes.step, placement, "qwen_vl.decode")
        self._prompt = compiled(self._passes.prompt, placement, "qwen_vl.prefill")
        adapted = (self._passes.adapted_step, self._passes.adapted_prompt)
        self._adapted_decode = compiled(adapted[0], placement, "qwen_vl.adapted_decode")
        self._adapted_prompt = compiled(adapted[1], placement, "qwen_vl.adapted_prefill")

    @property
    def adapter_slots(self) -> int:
        """How many adapters the rows of a pass can have."""
        return 0 if self._tables is None else self._tables.slots

    @property
    def padding(self) -> int:
        """The slot of padding rows, which no sequence has."""
        return self._slots.padding

    # -- prompts ---------------------------------------------------------------------------------
    @torch.no_grad()
    def reset_slots(self, resets: Sequence[SlotReset]) -> None:
        """As `SlotState.reset`. May be repeated."""
        self._slots.reset(resets, self._move)

    @staged("prefill")
    @torch.no_grad()
    def prefill(self, parts: Sequence[PromptPart], width: int) -> Tensor:
        """Read parts of prompts in one pass of `width` rows (off a GPU each in its own). Returns
        the first tokens (parts with a choice,) int64 of the answers."""
        return self.chooser.choose(self.prompt_logits(parts, width), choices_of(parts, self.vocab))

    @staged("prefill")
    @torch.no_grad()
    def prefill_controlled(
        self, parts: Sequence[PromptPart], width: int, masks: MaskSource
    ) -> PassChoice:
        """`prefill` where rows have controls; `masks` is called once the pass is launched."""
        logits = self.prompt_logits(parts, width)
        return self.chooser.choose_controlled(logits, choices_of(parts, self.vocab), masks())

    def prompt_logits(self, parts: Sequence[PromptPart], width: int) -> Tensor:
        """Logits (rows, vocab) of a pass over parts of prompts, those of parts with a choice
        first."""
        if self._placement.is_cuda:
            return self._prefill_packed(parts, width)
        logits = [self._prefill_one(part, width) for part in parts]
        return torch.cat([x for x, p in zip(logits, parts, strict=True) if p.choice] or logits)

    def _prefill_one(self, part: PromptPart, width: int) -> Tensor:
        """A pass over one part; logits (1, vocab) after its last token."""
        n, packed = len(part.tokens), np.zeros((5, width), np.int64)
        part.put_columns(packed[:, :n], self.limits.page_tokens)
        tokens, positions, places = torch.from_numpy(packed).split((1, 3, 1))
        embedded = self._decoder.embedding(tokens[0])
        deepstack = self._deepstack(width)
        put_pictures([part], [0], embedded, deepstack)
        table = self._slots.tables[part.slot : part.slot + 1]
        span, last = torch.tensor([[part.start, n]]), torch.tensor([n - 1])
        inputs = [embedded, positions, last, places[0], table, span]
        run: Callable[..., Tensor] = self._prompt
        if part.adapters:
            run, inputs = self._adapted_prompt, [*inputs, *self._plain_scales([part.adapters])]
        return run(*inputs) if deepstack is None else run(*inputs, deepstack)

    def _deepstack(self, width: int) -> Tensor | None:
        """Zeros (levels, width, hidden) for a pass's DeepStack features; None for a model without
        DeepStack."""
        shape, place = self._decoder.shape, self._placement
        if not shape.deepstack:
            return None
        size = (shape.deepstack, width, shape.hidden)
        return torch.zeros(size, dtype=place.dtype, device=place.device)

    def _prefill_packed(self, parts: Sequence[PromptPart], width: int) -> Tensor:
        """One pass over all parts; logits (PACK_PROMPTS, vocab), those of parts with a choice
        first."""
        size, padding = self.limits.page_tokens, self._slots.padding
        embedding = self._decoder.embedding.weight
        ints, firsts = pack_prompts(parts, width, size, padding)
        if not any(part.adapters for part in parts):
            run = self._captured["prefill", width]
            return replay_prompts(run, embedding, parts, firsts, ints)
        run = self._captured["adapted prefill", width]
        weights = packed_weights(self._adapters, parts, firsts, width)
        return replay_prompts(run, embedding, parts, firsts, ints, weights)

    def put_newest(self, slot: int, token: int) -> None:
        """Have the answer of `slot` end with `token`."""
        self._slots.feed[slot] = token

    # -- answers ---------------------------------------------------------------------------------
    @staged("decode")
    @torch.no_grad()
    def decode(self, rows: DecodeRows) -> Tensor:
        """The next token (len(rows),) int64 of each sequence; at most `decode_widths[-1]` rows.
        Valid until the next pass is launched: clone them before that."""
        if not self._placement.is_cuda or any(rows.adapters):
            return self.chooser.choose(self.step_logits(rows), rows.choices)
        width = self._decode_width(rows)
        self.chooser.inputs.put(rows, width)
        run = self._captured["decode", width]
        run(*run.inputs)
        return self.chooser.choose_placed(rows.choices, width)

    @staged("decode")
    @torch.no_grad()
    def decode_controlled(self, rows: DecodeRows, masks: MaskSource) -> PassChoice:
        """`decode` where rows have controls; `masks` is called once the pass is launched, and may
        wait for the tokens before these meanwhile."""
        logits = self.step_logits(rows)
        return self.chooser.choose_controlled(logits, rows.choices, masks())

    def step_logits(self, rows: DecodeRows) -> Tensor:
        """Logits (width, vocab) after each sequence's newest token: its rows, then padding."""
        width = self._decode_width(rows)
        ints = widened(rows.ints, width, (self._slots.padding, 0, 0, 0))
        adapters: list[SlotScales] = []
        if self._tables is not None and any(rows.adapters):
            adapters = [*rows.adapters, *[()] * (width - len(rows))]
        if self._placement.is_cuda:
            if adapters:
                weights = dense_weights(self._adapters, adapters)
                run = self._captured["adapted decode", width]
                return run(ints.pin_memory(), weights.pin_memory())
            return self._captured["decode", width](ints.pin_memory())
        slots, lengths, positions, indices = ints.unbind()
        size = self.limits.page_tokens
        is_row = torch.arange(width) < len(rows)
        pages = self._slots.tables[slots, lengths // size]  # the scratch page for padding
        places = pages * size + lengths % size
        spans = torch.stack((lengths, is_row), dim=1)
        tokens = self._slots.newest_tokens(slots, indices)
        tables = self._slots.tables.index_select(0, slots)
        inputs = (tokens, positions, places, tables, spans)
        if adapters:
            return self._adapted_decode(*inputs, *self._plain_scales(adapters))
        return self._decode(*inputs)

    def _decode_width(self, rows: DecodeRows) -> int:
        return next(width for width in self.decode_widths if width >= len(rows))

    def _plain_scales(self, adapters: Sequence[SlotScales]) -> tuple[Tensor, Tensor]:
        """The adapters' scales of all rows as `PlainChanges` takes them, in the same shapes at each
        call of a compiled pass."""
        tables, place = self._adapters, self._placement
        least = tables.slots if place.compile != "off" else 0
        return plain_scales(tables, adapters, place.dtype, least)

    @property
    def _adapters(self) -> AdapterTables:
        assert self._tables is not None
        return self._tables

    def copy(self, tokens: Tensor) -> HostCopy:
        return to_host_async(tokens)

    def mark(self) -> LaunchMark:
        """A mark behind all work that was launched so far."""
        return mark_launched(self._placement)

    # -- warm-up ---------------------------------------------------------------------------------
    def warm_shapes(self) -> list[PromisedPass]:
        """Every promised pass, the largest first, since their graphs share one memory pool."""
        prompts, steps = self.limits.chunk_widths[::-1], self.decode_widths[::-1]
        shapes = [*self.chooser.warm_shapes(), *self.mixed.warm_shapes(self._check)]
        kinds: tuple[SlotScales, ...] = ((),)
        if self._tables is not None:
            kinds = (((0, 1.0),), ())
        for kind, name, widths, warm in (
            (PassKind.PROMPT, "prefill ", prompts, self._warm_prefill),
            (PassKind.DECODE, "decode x", steps, self._warm_decode),
        ):
            for width, adapters in itertools.product(widths, kinds):
                run, named = partial(warm, width, adapters), f"{_kind(adapters)}{name}{width}"
                shapes.append(PromisedPass(kind, width, named, run))
        return shapes

    def _capture(
        self,
        name: str,
        width: int,
        run: Callable[..., Tensor],
        *like: Tensor,
        in_place: bool = False,
    ) -> None:
        if (name, width) not in self._captured:
            captured = self._graphs.capture(run, like, f"{name} {width}", in_place=in_place)
            self._captured[name, width] = captured

    def _warm_decode(self, width: int, adapters: SlotScales) -> None:
        if self._placement.is_cuda:
            inputs, run = self.chooser.inputs, self._passes.fused_step
            inputs.put(warm_rows(width, self.padding, self.vocab, GREEDY), width)
            placed = inputs.rows(width)
            if adapters:
                weights = self._move(dense_weights(self._adapters, [adapters] * width))
                self._capture("adapted decode", width, run, placed, weights)
            else:
                self._capture("decode", width, run, placed, in_place=True)
        for sampling in ONE_PER_SAMPLER:
            rows = warm_rows(width, self.padding, self.vocab, sampling, adapters)
            self._check(self.decode(rows), f"{_kind(adapters)}decode x{width}")

    def _warm_prefill(self, width: int, adapters: SlotScales) -> None:
        n = min(width, self.limits.max_context)
        if self._placement.is_cuda:
            hidden, place = self._decoder.shape.hidden, self._placement
            embedded = torch.zeros(width, hidden, dtype=place.dtype, device=place.device)
            ints = self._move(torch.zeros(num_prompt_ints(width), dtype=torch.int64))
            deepstack = self._deepstack(width)
            more = [] if deepstack is None else [deepstack]
            run: Callable[..., Tensor] = self._passes.fused_prompt
            if adapters:
                run = self._passes.fused_adapted_prompt
                more.insert(0, self._move(dense_weights(self._adapters, [adapters] * width)))
            self._capture(f"{_kind(adapters)}prefill", width, run, embedded, ints, *more)
        for sampling in ONE_PER_SAMPLER:
            pages = self.limits.pages_per_slot
            part = warm_part(n, self.padding, pages, sampling, adapters)
            self._check(self.prefill([part], width), f"{_kind(adapters)}prefill {width}")

    def _check(self, tokens: Tensor, what: str) -> None:
        """Raise `EngineFailed` for tokens that are no tokens: the weights are damaged. Waits."""
        found, vocab = self.copy(tokens).result().tolist(), self.vocab
        if not all(0 <= token < vocab for token in found):
            raise EngineFailed(f"the logits of warm-up {what} are not finite; {DAMAGED}")


def _kind(adapters: SlotScales) -> str:
    """Prefix of the name of a pass with these adapters."""
    return "adapted " if adapters else ""
