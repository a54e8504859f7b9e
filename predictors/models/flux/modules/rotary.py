"""Rotary position embedding in three axes: text index, row and column."""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0


def rotary_table(
    num_text: int,
    rows: int,
    columns: int,
    axes: tuple[int, ...],
    reference: tuple[int, int] = (0, 0),
) -> Tensor:
    """cos and sin of each token's angles, on the host: float32 (2, tokens, sum(axes) / 2).

    The T = `num_text` text tokens have position 0 on every axis, a patch (0, row, column), and one
    of the `reference` picture, which has rows and columns of its own, (1, row, column).
    Angles are float64 as in diffusers' `FluxPosEmbed`: float32 loses the high positions.
    """
    text = torch.zeros(num_text, 3, dtype=torch.float64)
    parts = [text, _patches(0, rows, columns), _patches(1, *reference)]
    positions = torch.cat(parts)  # (tokens, 3)
    angles = torch.cat([_angles(positions[:, i], dim) for i, dim in enumerate(axes)], dim=-1)
    return torch.stack((angles.cos(), angles.sin())).float()


def _patches(picture: int, rows: int, columns: int) -> Tensor:
    patches = torch.full((rows, columns, 3), float(picture), dtype=torch.float64)
    patches[..., 1] = torch.arange(rows)[:, None]
    patches[..., 2] = torch.arange(columns)[None, :]
    return patches.flatten(0, 1)


def _angles(positions: Tensor, dim: int) -> Tensor:
    # (tokens,) -> (tokens, dim / 2)
    frequencies = 1.0 / THETA ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.outer(positions, frequencies)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate neighbouring pairs of `x` (rows, tokens, heads, head_dim) by their token's angles."""
    cos, sin = rotary[:, None, :, None, :].unbind(0)  # (1, tokens, 1, head_dim / 2)
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)
