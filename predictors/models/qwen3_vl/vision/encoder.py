"""The vision tower on a device behind `chat.model.VisionEncoder`: plain for any grid, packed for a
bucket of patches."""

from __future__ import annotations

from torch import Tensor

from predictors.chat.adapters.changes import RowChanges
from predictors.chat.adapters.places import LinearPlaces
from predictors.compute.device.placement import Placement, to_device
from predictors.compute.kernels.attention import Attention, sdpa
from predictors.models.qwen3_vl.vision.grid import packed_grid
from predictors.models.qwen3_vl.vision.tower import PlainVision, VisionTower, vision_places


class Encoder:
    """Implements `VisionEncoder`. Engine thread only."""

    def __init__(self, tower: VisionTower, placement: Placement) -> None:
        shape = tower.shape
        self.patch, self.merge, self.patch_values = shape.patch, shape.merge, shape.patch_values
        self.warm_grid = (2 * shape.merge, 3 * shape.merge)
        self._tower = tower
        self._placement = placement
        self._frequencies = to_device(shape.frequencies(), placement)
        self._attention: Attention = sdpa

    @property
    def places(self) -> LinearPlaces:
        return vision_places(self._tower)

    def encode(
        self, patches: Tensor, grid: tuple[int, int], changes: RowChanges | None = None
    ) -> Tensor:
        ints = to_device(self.pack_grid(grid, len(patches)), self._placement)
        kind = (self._tower.shape, self._frequencies, changes)
        plain = PlainVision(ints, len(patches), *kind)
        features: Tensor = self._tower(patches, plain)
        return features

    def pack_grid(self, grid: tuple[int, int], num_patches: int) -> Tensor:
        return packed_grid(*grid, num_patches, self._tower.shape)

    def encode_packed(
        self, patches: Tensor, grid: Tensor, changes: RowChanges | None = None
    ) -> Tensor:
        from predictors.models.qwen3_vl.vision.fused import FusedVision  # CUDA only: has Triton

        kind = (self._tower.shape, self._frequencies, self._attention, changes)
        features: Tensor = self._tower(patches, FusedVision(grid, len(patches), *kind))
        return features

    def choose_attention(self, num_patches: int) -> None:
        from predictors.chat.vision.attention import fastest_attention  # CUDA only: has Triton

        self._attention = fastest_attention(self._tower.shape, num_patches, self._placement)
