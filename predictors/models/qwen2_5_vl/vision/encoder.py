"""The vision tower on a device behind `chat.model.VisionEncoder`: plain for any grid, packed for a
bucket of patches. Keeps the plans of recent grids.
"""

from __future__ import annotations

from functools import lru_cache, partial

from torch import Tensor

from predictors.chat.adapters.changes import RowChanges
from predictors.chat.adapters.places import LinearPlaces
from predictors.compute.device.placement import Placement, to_device
from predictors.compute.kernels.attention import Attention, sdpa
from predictors.models.qwen2_5_vl.vision.grid import (
    GridPlan,
    packed_grid,
    plan_grid,
)
from predictors.models.qwen2_5_vl.vision.operations import Plain
from predictors.models.qwen2_5_vl.vision.tower import VisionTower, vision_places

GRID_PLANS = 256  # kept; one of 1024 x 1024 pixels takes 3.6 MB


class Encoder:
    """Implements `VisionEncoder`. Engine thread only."""

    def __init__(self, tower: VisionTower, placement: Placement) -> None:
        shape = tower.shape
        self.patch, self.merge, self.patch_values = shape.patch, shape.merge, shape.patch_values
        side = shape.merge * (shape.side + 1)  # more than one window
        self.warm_grid = (side, side)
        self._tower = tower
        self._placement = placement
        self._frequencies = to_device(shape.frequencies(), placement)
        self._attention: Attention = sdpa
        self._plan = lru_cache(maxsize=GRID_PLANS)(self._make_plan)

    @property
    def places(self) -> LinearPlaces:
        return vision_places(self._tower)

    def encode(
        self, patches: Tensor, grid: tuple[int, int], changes: RowChanges | None = None
    ) -> Tensor:
        shape = self._tower.shape
        ops = Plain(self._plan(grid), shape.heads, shape.merge, changes)
        tokens: Tensor = self._tower(patches, ops)
        return tokens[None]

    def pack_grid(self, grid: tuple[int, int], num_patches: int) -> Tensor:
        return packed_grid(*grid, num_patches, self._tower.shape)

    def encode_packed(
        self, patches: Tensor, grid: Tensor, changes: RowChanges | None = None
    ) -> Tensor:
        from predictors.models.qwen2_5_vl.vision.fused import FusedVision  # CUDA only: has Triton

        kind = (self._tower.shape, self._frequencies, self._attention, changes)
        tokens: Tensor = self._tower(patches, FusedVision(grid, len(patches), *kind))
        return tokens[None]

    def choose_attention(self, num_patches: int) -> None:
        from predictors.chat.vision.attention import fastest_attention  # CUDA only: has Triton

        self._attention = fastest_attention(self._tower.shape, num_patches, self._placement)

    def _make_plan(self, grid: tuple[int, int]) -> GridPlan:
        shape = self._tower.shape
        return plan_grid(*grid, shape).moved(partial(to_device, placement=self._placement))
