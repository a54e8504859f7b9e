"""A row's bits in a block do not depend on how many rows share the pass.

The number of threads varies, since it decides how rows are split.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from predictors.models.flux.modules.operations import Carry, Plain, apart
from predictors.models.flux.modules.transformer import DoubleBlock, Shape, SingleBlock

SHAPE = Shape(
    num_double=1, num_single=1, num_heads=4, head_dim=32, in_channels=16, out_channels=16,
    text_dim=16, pooled_dim=8, has_guidance=False, rotary_axes=(8, 12, 12),
)  # fmt: skip


def batching_changes(rows: list[Tensor], run: Callable[[Tensor], Tensor]) -> bool:
    alone = [run(row[None])[0] for row in rows]
    widths = range(2, len(rows) + 1)
    together = [run(torch.stack(rows[:w])) for w in widths]
    return any(
        not torch.equal(batch[i], alone[i]) for batch in together for i in range(batch.shape[0])
    )


@pytest.mark.parametrize("num_tokens", [33, 97])
def test_blocks_keep_each_rows_bits(threads: int, num_tokens: int) -> None:
    torch.manual_seed(0)
    double, single = DoubleBlock(SHAPE), SingleBlock(SHAPE)
    rotary = torch.randn(2, 2 * num_tokens, 16)
    rows = list(torch.randn(5, 2 * num_tokens, SHAPE.dim))
    mods = torch.randn(5, 12 * SHAPE.dim)

    def both(x: Tensor, mods: Tensor) -> Tensor:
        ops = Plain()
        carry = double(ops, Carry(x, None, None), mods, rotary, num_tokens)
        carry = single(ops, carry, mods[:, : 3 * SHAPE.dim], rotary, num_tokens)
        return torch.stack((carry.tokens, carry.update))

    with torch.inference_mode():
        alone = [both(row[None], mods[i : i + 1])[:, 0] for i, row in enumerate(rows)]
        for width in range(2, 6):
            batch = both(torch.stack(rows[:width]), mods[:width])
            for i in range(width):
                assert torch.equal(batch[:, i], alone[i]), f"row {i} of {width}"


def test_plain_batching_changes_bits_and_apart_does_not() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    try:
        torch.manual_seed(0)
        rows = list(torch.randn(8, 97, 512))

        def gelu(x: Tensor) -> Tensor:
            return F.gelu(x, approximate="tanh")

        assert batching_changes(rows, gelu)
        assert not batching_changes(rows, lambda x: apart(gelu, x))
    finally:
        torch.set_num_threads(before)
