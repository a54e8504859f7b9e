"""Which stream a Hopper decode step multiplies by. The kernels are replaced by their definition in
float32, so any machine runs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from predictors.chat.adapters.operations import AdaptedOperations
from predictors.chat.decoder.decoder import Decoder
from predictors.chat.decoder.layers import RMSNorm
from predictors.chat.decoder.operations import (
    Angles,
    CachePlaces,
    PlainOperations,
    Stream,
    WeightedStream,
    values_of,
)
from predictors.compute.kernels import hopper_linear
from predictors.compute.kernels.fp8 import Fp8Linear
from predictors.compute.kernels.hopper_linear import Weighted
from tests import triton_interpreter
from tests.chat.decoder.test_fused import OPTIONS, Rig, distance, wide_copy

assert triton_interpreter
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")

from predictors.chat.decoder.few_rows import SplitScratch  # noqa: E402
from predictors.chat.decoder.hopper_linears import HopperLinears  # noqa: E402

ROWS = 3
SHAPE = replace(OPTIONS, mlp=128, vocab=208)
CPU = torch.device("cpu")


class PlainAttention(HopperLinears):
    """The linears of a Hopper step with torch's attention."""

    def __init__(self, places: CachePlaces) -> None:
        super().__init__(SplitScratch.of(CPU))
        self.attend = PlainOperations(places).attend


class NoChanges:
    """Adapters that change nothing, in place."""

    def added(self, out: Tensor, x: Tensor, layer: torch.nn.Module) -> Tensor:
        return out


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of the kernels, by name; those are replaced."""
    counted: Counter[str] = Counter()

    def weigh(stream: Tensor, gains: Tensor) -> Weighted:
        wide = stream.float()
        values = (wide * gains.float()).to(stream.dtype)
        return Weighted(values, wide.square().sum(1, keepdim=True))

    def weighted(stream: Tensor, gains: Tensor) -> Weighted:
        counted["weighted"] += 1
        return weigh(stream, gains)

    def added_linear(x: Tensor, weight: Tensor, stream: Tensor, gains: Tensor) -> Weighted:
        counted["added_linear"] += 1
        stream.copy_(stream.float() + x.float() @ weight.float().T)
        return weigh(stream, gains)

    def normed_linear(
        x: Weighted,
        eps: float,
        weight: Tensor,
        *,
        bias: Tensor | None = None,
        is_gated: bool = False,
        out: Tensor | None = None,
    ) -> Tensor:
        counted["normed_linear"] += 1
        root = (x.squares / x.values.shape[1] + eps).rsqrt()
        made = x.values.float() @ weight.float().T * root
        if is_gated:
            gate, up = made.chunk(2, 1)
            made = F.silu(gate) * up
        if bias is not None:
            made += bias.float()
        return made.to(weight.dtype) if out is None else out.copy_(made)

    def norm(x: Tensor, gains: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x.float(), gains.shape, gains.float(), eps).to(x.dtype)

    for kernel in (weighted, added_linear, normed_linear, norm):
        monkeypatch.setattr(hopper_linear, kernel.__name__, kernel)
    return counted


class Step(Rig):
    """A decode step of three sequences of one token each, in bfloat16."""

    def places_of_rows(self) -> CachePlaces:
        spans = torch.tensor([[0, 1]] * ROWS)
        places = torch.stack([self.places(slot, torch.tensor(0)) for slot in range(ROWS)])
        return CachePlaces(places, self.tables[:ROWS], spans)

    def inputs(self) -> tuple[Tensor, Angles, CachePlaces]:
        angles = self.decoder.angles(torch.arange(ROWS).expand(3, -1))
        return torch.randn(ROWS, SHAPE.hidden).bfloat16(), angles, self.places_of_rows()


@pytest.fixture
def step() -> Step:
    rig = Step.build(SHAPE)
    assert isinstance(rig, Step)
    rig.decoder.bfloat16()
    rig.caches[:] = [cache.bfloat16() for cache in rig.caches]
    return rig


Adapt = Callable[[HopperLinears], AdaptedOperations | HopperLinears]


@pytest.mark.parametrize("levels", [0, 1])
@pytest.mark.parametrize(
    ("adapt", "anew"),
    [(lambda ops: ops, 1), (lambda ops: AdaptedOperations(ops, NoChanges()), None)],
    ids=["plain", "adapted"],
)
def test_a_stream_is_weighted_anew_where_something_else_has_written_it(
    step: Step, calls: Counter[str], levels: int, adapt: Adapt, anew: int | None
) -> None:
    """At the start, behind features of pictures, and behind adapters."""
    x, angles, where = step.inputs()
    deepstack = torch.randn(1, ROWS, SHAPE.hidden).bfloat16() if levels else None
    wide, caches = wide_copy(step.decoder), [cache.double() for cache in step.caches]
    added = None if deepstack is None else deepstack.double()
    exact = PlainOperations(where)
    turned = Angles(angles.cos.double(), angles.sin.double())
    want = wide.logits(wide(x.double(), turned, caches, exact, added), exact)
    ops = adapt(PlainAttention(where))
    stream = step.decoder(x.clone(), angles, step.caches, ops, deepstack)
    found = step.decoder.logits(stream, ops)
    assert found.dtype == torch.float32
    assert distance(found, want) < 0.03
    norms = 2 * SHAPE.layers + 1
    assert calls["added_linear"] == 2 * SHAPE.layers
    assert calls["normed_linear"] == norms
    assert calls["weighted"] == (norms if anew is None else anew + levels)


def test_what_is_ready_for_one_norm_is_not_taken_for_another(calls: Counter[str]) -> None:
    decoder = Decoder(SHAPE).requires_grad_(False).bfloat16()
    ops = HopperLinears(SplitScratch.of(CPU))
    block = decoder.blocks[0]
    x = torch.randn(ROWS, SHAPE.hidden).bfloat16()
    block.norm1.weight.normal_()
    made: Stream = ops.added_linear(x.clone(), x, step_layer(), block.norm2)
    assert isinstance(made, WeightedStream)
    other = ops.normed_linear(made, block.norm1, block.attention.qkv)
    assert calls["weighted"] == 1
    assert torch.equal(other, ops.normed_linear(made.values, block.norm1, block.attention.qkv))


def step_layer() -> torch.nn.Linear:
    layer = torch.nn.Linear(SHAPE.hidden, SHAPE.hidden, bias=False)
    return layer.requires_grad_(False).bfloat16()


def test_weights_in_fp8_get_the_stream_itself(calls: Counter[str]) -> None:
    norm = RMSNorm(SHAPE.hidden, 1e-6).requires_grad_(False).bfloat16()
    ops = HopperLinears(SplitScratch.of(CPU))
    x = torch.randn(ROWS, SHAPE.hidden).bfloat16()
    narrow = Fp8Linear.of(step_layer())
    made = ops.added_linear(x.clone(), x, step_layer(), norm)
    assert isinstance(made, WeightedStream)
    found = ops.added_linear(made, x, narrow, norm)
    assert isinstance(found, Tensor)
    assert found is made.values
    assert values_of(found) is found
    assert calls == {"added_linear": 1}
