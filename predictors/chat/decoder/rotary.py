"""Rotary position embeddings: three-axis for the text, two-axis for the vision tower.

Pure tensor functions of positions that keep no state, so one sequence's positions can't leak into
another's. Formulas: M-RoPE of Qwen2-VL (arXiv 2409.12191, section
2.1), axial 2-D RoPE of its vision tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def inverse_frequencies(dim: int, theta: float) -> Tensor:
    """theta^(-2i/dim) for i < dim/2, fp32, shape (dim/2,)."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    return 1.0 / theta**exponents


def axes_in_blocks(sections: Sequence[int]) -> tuple[int, ...]:
    """The axis (0 time, 1 height, 2 width) of each frequency: blocks of `sections` frequencies, one
    axis after the other."""
    return tuple(axis % 3 for axis, size in enumerate(sections) for _ in range(size))


def axes_interleaved(sections: Sequence[int]) -> tuple[int, ...]:
    """The axis of each frequency, with the axes in turn: time, height, width, time, ... as long as
    an axis has frequencies left of its `sections`, and time after that."""
    ends = {axis: 3 * sections[axis] for axis in (1, 2)}
    axes = (i % 3 for i in range(sum(sections)))
    return tuple(axis if i < ends.get(axis, 0) else 0 for i, axis in enumerate(axes))


def text_table(
    positions: Tensor, frequencies: Tensor, axes: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """cos and sin, each (tokens, head_dim) fp32, for integer `positions` (3, tokens).

    `scale` multiplies both (1.0 unless the checkpoint stretches its context, as YaRN does).
    """
    chosen = positions.index_select(0, axes).T  # (tokens, head_dim/2): each frequency sees its axis
    angles = chosen.to(torch.float32) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * scale, angles.sin() * scale


def vision_table(rows: Tensor, columns: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, each (patches, head_dim) fp32, for patch coordinates (patches,) and
    `frequencies` (head_dim/4,).

    The first half of a head's frequencies follows the row, the second the column.
    """
    angles = torch.stack((rows, columns), dim=-1).to(torch.float32)[..., None] * frequencies
    angles = angles.flatten(1)  # (patches, head_dim/2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + head_dim/2) of `x` (tokens, heads, head_dim); computed in fp32."""
    wide = x.to(torch.float32)
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (wide * cos[:, None] + turned * sin[:, None]).to(x.dtype)


class VisionSpan(NamedTuple):
    """Where a picture lies in a prompt: `rows` x `columns` tokens from index `start`. Of a film
    `steps` such grids lie one after the other, `interval` positions of time apart."""

    start: int
    rows: int
    columns: int
    steps: int = 1
    interval: float = 0.0

    def times(self) -> NDArray[np.int64]:
        """The position of each step on the axis of time, from the first: whole numbers below
        multiples of `interval`, in 32 bits as Qwen's training has them (ADR 0065)."""
        exact = np.arange(self.steps, dtype=np.float32) * np.float32(self.interval)
        return exact.astype(np.int64)


def mrope_positions(num_tokens: int, spans: Sequence[VisionSpan]) -> tuple[Tensor, int]:
    """Rotary positions (3, num_tokens) int64 of time, height, width, and the one that comes next.
    `spans` are in order.

    Text counts on all axes alike; a picture stands still in time, spreads over height and width,
    and text goes on after the highest position on any axis (arXiv 2409.12191, section 2.1).
    """
    # by numpy: a small operation takes a fifth of torch's time
    found = np.empty((3, num_tokens), np.int64)
    if not spans:
        found[:] = np.arange(num_tokens)
        return torch.from_numpy(found), num_tokens
    index = position = 0
    for span in spans:
        start, rows, columns, steps, _ = span
        found[:, index:start] = np.arange(position, position + start - index)
        position += start - index
        index = start + steps * rows * columns
        grid = np.empty((3, steps, rows, columns), np.int64)
        times = span.times()
        grid[0] = position + times[:, None, None]
        grid[1] = position + np.arange(rows)[:, None]
        grid[2] = position + np.arange(columns)
        found[:, start:index] = grid.reshape(3, -1)
        position += max(rows, columns, int(times[-1]) + 1)
    found[:, index:] = np.arange(position, position + num_tokens - index)
    return torch.from_numpy(found), position + num_tokens - index
