"""The context embedder, and the modulation of every block at every step of a picture.

Both are computed once before the first step. Diffusers computes the modulations in each step, as
matrix-vector products that read a quarter of the model's weights. They depend only on timestep,
guidance and pooled prompt, so one matmul gives all steps: the same sums, once.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.models.flux.modules.transformer import Shape

NUM_FREQUENCIES = 128
MAX_PERIOD = 10_000.0


class Embedder(nn.Module):
    """Two linears with SiLU between: (n, in_features) to (n, dim)."""

    def __init__(self, in_features: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(in_features, dim)
        self.second = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.second(F.silu(self.first(x)))
        return embedded


class Conditioning(nn.Module):
    """The layers from timesteps, guidance and prompt to the blocks' inputs."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dim = shape.dim
        self.time = Embedder(2 * NUM_FREQUENCIES, dim)
        self.guidance = Embedder(2 * NUM_FREQUENCIES, dim) if shape.has_guidance else None
        self.pooled = Embedder(shape.pooled_dim, dim)
        self.context = nn.Linear(shape.text_dim, dim)
        # all blocks' modulations side by side, in the order in which Transformer.forward splits
        self.modulation = nn.Linear(dim, shape.modulation_dim)

    def modulations(self, timesteps: Tensor, guidance: Tensor, pooled: Tensor) -> Tensor:
        """All modulations of one picture: (steps, rows, modulation_dim).

        timesteps (steps,) times 1000, guidance (1,) times 1000 (unused without its embedder),
        pooled (rows, pooled_dim); all in the weights' dtype.
        """
        when = self.time(_waves(timesteps))  # (steps, dim)
        if self.guidance is not None:
            when = when + self.guidance(_waves(guidance))
        vector = when[:, None] + self.pooled(pooled)[None]  # (steps, rows, dim)
        every: Tensor = self.modulation(F.silu(vector))
        return every


def _waves(x: Tensor) -> Tensor:
    # (n,) to (n, 256) in x's dtype: cosines, then sines (diffusers' Timesteps, flipped, no shift)
    exponents = torch.arange(NUM_FREQUENCIES, dtype=torch.float32, device=x.device)
    frequencies = torch.exp(-math.log(MAX_PERIOD) * exponents / NUM_FREQUENCIES)
    angles = x.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(x.dtype)
