"""The decoder's kernels against the plain operations in float64, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from predictors.chat.choices import Choices, TokenChoice, pack_choices, pack_controlled
from predictors.chat.decoder.control_state import ControlState
from predictors.chat.decoder.decoder import Block, Decoder, DecoderShape
from predictors.chat.decoder.layers import RMSNorm
from predictors.chat.decoder.operations import Angles, CachePlaces, PlainOperations, values_of
from predictors.chat.decoder.paged import TILE
from predictors.chat.decoder.rotary import axes_in_blocks, axes_interleaved, inverse_frequencies
from predictors.chat.decoder.state import SlotState
from predictors.chat.decoder.weights import quantize_decoder
from predictors.chat.logit_changes import (
    CONTROLLED,
    change_logits,
    num_words,
)
from predictors.chat.request import Controls, Sampling
from predictors.chat.sampling import (
    NOT_FINITE,
    ONE_PER_SAMPLER,
    SAMPLERS,
)
from predictors.compute.kernels.fp8 import Fp8Linear, RowScaled, dequantized
from tests import triton_interpreter

fused = pytest.importorskip("predictors.chat.decoder.fused")
few_rows = pytest.importorskip("predictors.chat.decoder.few_rows")
linears = pytest.importorskip("predictors.chat.decoder.fused_linears")
tokens_in_and_out = pytest.importorskip("predictors.chat.decoder.fused_tokens")
assert triton_interpreter

PAGE, PAGES_EACH, SLOTS = 16, 10, 4
SHAPE = DecoderShape(
    vocab=200, hidden=64, mlp=96, layers=2, heads=4, kv_heads=2, head_dim=16, eps=1e-6,
    frequencies=tuple(inverse_frequencies(16, 1e6).tolist()), axes=axes_in_blocks((2, 3, 3)),
    rope_scale=1.0, tied=True, max_positions=512,
)  # fmt: skip
OPTIONS = replace(SHAPE, head_dim=32, qkv_bias=False, qk_norm=True, deepstack=1,
    frequencies=tuple(inverse_frequencies(32, 1e6).tolist()), axes=axes_interleaved((6, 5, 5)),
)  # fmt: skip
"""Everything that the other shape has not."""


@dataclass
class Rig:
    """A small decoder with random weights, its pages filled with earlier tokens."""

    decoder: Decoder
    caches: list[Tensor]
    tables: Tensor
    scratch: fused.DecodeScratch

    @classmethod
    def build(cls, shape: DecoderShape = SHAPE) -> Rig:
        torch.manual_seed(3)
        decoder = Decoder(shape).requires_grad_(False)
        for name, weight in decoder.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.3 * torch.randn(weight.shape))
        pool = (2, 1 + SLOTS * PAGES_EACH, PAGE, shape.kv_heads, shape.head_dim)
        tables = torch.zeros(SLOTS + 1, PAGES_EACH, dtype=torch.int64)
        tables[:SLOTS] = 1 + torch.randperm(SLOTS * PAGES_EACH).view(SLOTS, PAGES_EACH)
        caches = [torch.randn(pool) for _ in range(shape.layers)]
        scratch = fused.DecodeScratch.of(SLOTS, shape.kv_heads, shape.head_dim, torch.device("cpu"))
        return cls(decoder, caches, tables, scratch)

    def places(self, slot: int, index: Tensor) -> Tensor:
        """Where tokens of a slot lie."""
        return self.tables[slot][index // PAGE] * PAGE + index % PAGE

    def exact(
        self, x: Tensor, angles: Angles, where: CachePlaces, deepstack: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The stream and the caches afterwards, in float64."""
        wide = wide_copy(self.decoder)
        caches = [cache.double() for cache in self.caches]
        turned = Angles(angles.cos.double(), angles.sin.double())
        added = None if deepstack is None else deepstack.double()
        return wide(x.double(), turned, caches, PlainOperations(where), added), caches


@pytest.fixture(params=[SHAPE, OPTIONS], ids=["bias", "norms"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """A fresh one: passes write to its caches."""
    return Rig.build(request.param)


def wide_copy(decoder: Decoder) -> Decoder:
    """The same in float64."""
    wide = Decoder(decoder.shape).double().requires_grad_(False)
    wide.load_state_dict(decoder.state_dict())
    return wide


def assert_near(found: Tensor, exact: Tensor) -> None:
    """float32 arithmetic: far under a thousandth."""
    assert found.isfinite().all()
    assert (found.double() - exact).norm() <= 2e-6 * exact.norm()


@pytest.mark.parametrize(
    ("lengths", "times"), [([130], 2), ([0], 1), ([16, 0, 64], 2), ([159, 15, 1, 128], 1)]
)
def test_a_fused_decode_step_equals_the_plain_one(rig: Rig, lengths: list[int], times: int) -> None:
    """So does a step of several rows with one row, and a step that is repeated (`times`)."""
    rows, before = len(lengths), torch.tensor(lengths)
    slots = torch.arange(rows).flip(0)
    x, positions = torch.randn(rows, SHAPE.hidden), before // 2
    places = torch.stack([rig.places(int(s), n) for s, n in zip(slots, before, strict=True)])
    spans = torch.stack((before, torch.ones_like(before)), 1)
    everywhere = rig.decoder.angles(torch.arange(200).expand(3, -1))
    own = Angles(*(table[positions] for table in everywhere))
    exact, caches = rig.exact(x, own, CachePlaces(places, rig.tables[slots], spans))
    standing = fused.DecodePlaces(slots, before, positions, rig.tables)
    kinds = {fused.FusedDecodeMany: 1, fused.FusedDecodeOne: times}
    untouched = rig.caches
    for kind, runs in kinds.items() if rows == 1 else [(fused.FusedDecodeMany, times)]:
        ours = [cache.clone() for cache in untouched]
        for _ in range(runs):
            found = rig.decoder(x.clone(), everywhere, ours, kind(standing, rig.scratch))
        assert_near(found, exact)
        for cache, wide in zip(ours, caches, strict=True):
            assert_near(cache, wide)
    assert not rig.scratch.arrivals.any()


def test_pieces_of_several_prompts_share_a_fused_pass(rig: Rig) -> None:
    pieces = [(2, 21, 37), (0, 0, 16), (3, 5, 1)]  # slot, start, tokens
    rows = sum(-(-n // TILE) * TILE for *_, n in pieces) + TILE  # the last tile is padding
    places = torch.zeros(rows, dtype=torch.int64)
    tiles: list[tuple[int, int, int]] = []
    firsts = []
    for slot, start, n in pieces:
        firsts.append(len(tiles) * TILE)
        places[firsts[-1] : firsts[-1] + n] = rig.places(slot, start + torch.arange(n))
        tiles += [(slot, start + i, min(TILE, n - i)) for i in range(0, n, TILE)]
    tiles.append((SLOTS, 0, 0))
    x, positions = torch.randn(rows, SHAPE.hidden), torch.randint(0, 150, (3, rows))
    angles = rig.decoder.angles(positions)
    own, starts, real = torch.tensor(tiles).T.contiguous()
    ops = fused.FusedPrompt(fused.PromptTiles(places, own, starts, real, rig.tables))
    ours = [cache.clone() for cache in rig.caches]
    levels = rig.decoder.shape.deepstack
    deepstack = torch.randn(levels, rows, SHAPE.hidden) if levels else None
    found = rig.decoder(x.clone(), angles, ours, ops, deepstack)
    assert found.isfinite().all()
    for (slot, start, n), first in zip(pieces, firsts, strict=True):
        part = slice(first, first + n)
        where = CachePlaces(places[part], rig.tables[slot : slot + 1], torch.tensor([[start, n]]))
        added = None if deepstack is None else deepstack[:, part]
        exact, _ = rig.exact(x[part], Angles(*(t[part] for t in angles)), where, added)
        assert_near(found[part], exact)


def test_one_row_through_a_linear_with_all_that_stands_beside_it() -> None:
    torch.manual_seed(0)
    x, norm = torch.randn(1, 1100), RMSNorm(1100, 1e-6).requires_grad_(False)
    norm.weight.normal_()
    layer = nn.Linear(1100, 50).requires_grad_(False)
    residual = torch.randn(1, 50)
    wide_norm = x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-6)
    normed = wide_norm * norm.weight.double()
    weight, bias = layer.weight.double(), layer.bias.double()
    assert_near(linears.skinny(x, layer, norm=norm), normed @ weight.T + bias)
    out = linears.skinny(x, layer, residual=residual)
    assert_near(out, x.double() @ weight.T + bias + residual.double())
    packed_layer = nn.Linear(1100, 100, bias=False).requires_grad_(False)
    gate, up = (normed @ packed_layer.weight.double().T).chunk(2, -1)
    assert_near(
        linears.skinny(x, packed_layer, norm=norm, is_gated=True),
        nn.functional.silu(gate) * up,
    )


def test_fp8_linears_over_one_row_and_over_many_equal_their_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The matrix units are not here: the product itself is the reference's."""

    def multiplied(self: Fp8Linear, x: RowScaled, out: Tensor) -> Tensor:
        return out.copy_(self.reference(dequantized(x)))

    monkeypatch.setattr(Fp8Linear, "forward", multiplied)
    rig = Rig.build()
    exact = wide_copy(rig.decoder)
    quantize_decoder(rig.decoder)
    block = rig.decoder.blocks[0]
    assert isinstance(block, Block)
    stream = torch.randn(3, SHAPE.hidden)
    plain = PlainOperations(CachePlaces(*[torch.empty(0)] * 3))
    ours = fused.FusedPrompt(None)
    qkv, out, mlp = block.attention.qkv, block.attention.out, block.mlp
    rows = ours.normed_linear(stream, block.norm1, qkv)
    assert distance(rows, plain.normed_linear(stream, block.norm1, qkv)) < 2e-3
    mixed = torch.randn(3, SHAPE.hidden)
    added = values_of(ours.added_linear(stream.clone(), mixed, out, block.norm2))
    plainly = values_of(plain.added_linear(stream, mixed, out, block.norm2))
    assert distance(added, plainly) < 2e-3
    gated = ours.gated_linear(stream, block.norm2, mlp.gate_up)
    both = values_of(ours.added_linear(stream.clone(), gated, mlp.down, block.norm1))
    wanted = plain.gated_linear(stream, block.norm2, mlp.gate_up)
    plainly = values_of(plain.added_linear(stream, wanted, mlp.down, block.norm1))
    assert distance(both, plainly) < 2e-3
    alone = linears.skinny(stream[:1], qkv, norm=block.norm1)
    true = exact.blocks[0].attention.qkv(exact.blocks[0].norm1(stream[:1].double()))
    assert distance(alone, true) < 0.04  # its weight is rounded, its row is not
    assert distance(rows[:1], true) < 0.06


@pytest.mark.parametrize("rows", [2, 16, 21])
@pytest.mark.parametrize("features", [192, 1280])
def test_few_rows_through_an_fp8_weight_are_not_quantised(rows: int, features: int) -> None:
    """The last tile of features is not full; the sum of 1280 is cut, and one part is shorter."""
    torch.manual_seed(rows)
    assert few_rows.tiling(16, 100, features)[1] == (2 if features == 1280 else 1)
    layer = Fp8Linear.of(nn.Linear(features, 100).requires_grad_(False))
    x, stream = torch.randn(rows, features), torch.randn(rows, 100)
    exact = x.double() @ (layer.weight.double() * layer.weight_scale.double()).T
    scratch = few_rows.SplitScratch.of(torch.device("cpu"))
    scratch.partial.fill_(float("nan"))
    for _ in range(2):
        assert_near(
            few_rows.few_rows(x, layer, scratch, bias=layer.bias), exact + layer.bias.double()
        )
        wanted = exact + stream.double()
        assert_near(few_rows.few_rows(x, layer, scratch, residual=stream.clone()), wanted)
    assert not scratch.arrivals.any()


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def memories(vocab: int) -> tuple[SlotState, SlotState]:
    """Twice the same state: for the kernels, and for torch."""
    torch.manual_seed(1)
    both = tuple(SlotState(3, 3, vocab, torch.device("cpu")) for _ in "ab")
    for state in both:
        generator = torch.Generator().manual_seed(9)
        state.feed.copy_(torch.randint(0, vocab, state.feed.shape, generator=generator))
        state.seen.copy_(torch.rand(state.seen.shape, generator=generator) < 0.3)
        state.counts.copy_(torch.randint(0, 3, state.counts.shape, generator=generator))
        state.counted.copy_(torch.tensor([4, 0, 7, 0]))
    return both


def test_a_fed_token_is_counted_once_however_often_the_step_is_repeated() -> None:
    ours, plain = memories(300)
    embedding = torch.randn(300, 48)
    slots, numbers = torch.tensor([2, 0]), torch.tensor([7, 3])  # slot 0 counted its third already
    before = plain.counts.clone()
    for _ in range(2):
        x = tokens_in_and_out.embed_newest(ours, slots, numbers, embedding)
        tokens = plain.newest_tokens(slots, numbers)
    assert torch.equal(x, embedding[tokens])
    for name in ("seen", "counts", "counted", "feed"):
        assert torch.equal(getattr(ours, name), getattr(plain, name)), name
    assert (plain.counts - before).nonzero().tolist() == [[2, int(tokens[0])]]


def test_the_most_likely_token_is_the_same_in_the_kernel() -> None:
    ours, plain = memories(5000)
    logits = torch.randn(3, 5000)
    logits[1, 17] = logits[1, 4711] = 99.0  # equals: the first wins
    kinds = [
        Sampling(temperature=0.0, repetition_penalty=1.3, presence_penalty=0.7),
        Sampling(temperature=0.0),
        Sampling(temperature=0.0, frequency_penalty=0.4, repetition_penalty=0.8),
    ]
    choices = [TokenChoice(slot, kind, 0, slot + 5) for slot, kind in enumerate(kinds)]
    ints, floats = pack_choices(Choices.of(choices, 5000), 3, 5000, ours.padding)
    found = tokens_in_and_out.choose_greedy(ours, logits, ints, floats)
    assert torch.equal(found, plain.choose_tokens(SAMPLERS["greedy"], logits, ints, floats))
    assert torch.equal(ours.feed, plain.feed)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 2047, 2048, 4999])
def test_the_best_token_of_a_row_that_is_not_finite_is_none(value: float, place: int) -> None:
    ours, plain = memories(5000)
    logits = torch.randn(3, 5000)
    logits[1, place] = value
    kind = Sampling(temperature=0.0, repetition_penalty=1.3, presence_penalty=0.7)
    choices = [TokenChoice(slot, kind, 0, slot + 5) for slot in range(3)]
    ints, floats = pack_choices(Choices.of(choices, 5000), 3, 5000, ours.padding)
    found = tokens_in_and_out.choose_greedy(ours, logits, ints, floats)
    assert torch.equal(found, plain.choose_tokens(SAMPLERS["greedy"], logits, ints, floats))
    assert found[1] == NOT_FINITE
    assert torch.equal(ours.feed[[0, 2]], plain.feed[[0, 2]])
    assert 0 <= ours.feed.min() <= ours.feed.max() < 5000


@pytest.mark.parametrize("way", SAMPLERS)
def test_controlled_rows_get_the_same_token_in_the_kernels(way: str) -> None:
    """Bias, withheld tokens and masks, alone and together, beside rows without any."""
    vocab = 5000
    ours, plain = memories(vocab)
    kind = replace(
        ONE_PER_SAMPLER[list(SAMPLERS).index(way)], repetition_penalty=1.3, presence_penalty=0.7
    )
    bias = tuple((token, 9.0 - token % 7) for token in (0, 2047, 2048, 4096, 4999))
    every = [
        Controls(),
        Controls(logit_bias=bias, min_tokens=9, stop_token_ids=frozenset([2047, 31])),
        Controls(logit_bias=bias),
        Controls(min_tokens=9),
    ]
    choices = [TokenChoice(i, kind, i, 4, controls) for i, controls in enumerate(every)]
    masks = {1: 1, 3: 0}
    generator = torch.Generator().manual_seed(4)
    words = torch.randint(-(2**31), 2**31, (2, num_words(vocab)), generator=generator).int()
    logits = torch.randn(4, vocab, generator=generator)
    ints, floats = pack_controlled(Choices.of(choices, vocab), masks, 4, vocab, ours.padding)
    found = []
    for state in (ours, plain):
        controls = ControlState(state, 4, [4000, 7])
        for choice in choices:
            controls.reset(choice.slot, choice.controls, lambda tensor: tensor)
        controls.words[:2] = words
        if state is ours:
            changed = tokens_in_and_out.change_fused(controls, logits, ints)
            expected = change_logits(logits, controls.changes_of(ints, controls.words))
            assert torch.equal(changed, expected)
            tokens = tokens_in_and_out.choose_controlled(controls, way, logits, ints, floats)
        else:
            run = CONTROLLED[way]
            tokens = controls.choose_tokens(run, logits, ints, floats, controls.words)
        found.append(tokens)
    assert torch.equal(*found)
    assert torch.equal(ours.feed, plain.feed)


@pytest.mark.parametrize(
    ("rows", "hidden", "dtype", "is_hopper", "expected"),
    [
        (1, 2048, torch.bfloat16, True, fused.FusedDecodeOne),
        (1, 3584, torch.bfloat16, True, fused.FusedDecodeHopper),
        (1, 3584, torch.float32, True, fused.FusedDecodeOne),
        (1, 3584, torch.bfloat16, False, fused.FusedDecodeOne),
        (2, 2048, torch.bfloat16, True, fused.FusedDecodeHopper),
        (64, 3584, torch.bfloat16, False, fused.FusedDecodeFew),
        (65, 3584, torch.bfloat16, True, fused.FusedDecodeMany),
    ],
)
def test_one_row_goes_through_chained_linears_where_the_stream_is_wide(
    rows: int, hidden: int, dtype: torch.dtype, is_hopper: bool, expected: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(fused, "is_available", lambda: is_hopper)
    layer = nn.Linear(hidden, 16, dtype=dtype, device="meta")
    monkeypatch.setattr(fused, "takes", lambda weight: weight.dtype == torch.bfloat16)
    slots = torch.zeros(rows, dtype=torch.int64)
    places = fused.DecodePlaces(slots, slots, slots, slots[None])
    scratch = fused.DecodeScratch.of(rows, 2, 16, torch.device("cpu"))
    assert type(fused.decode_operations(places, scratch, layer)) is expected
