"""Pictures to decoder tokens: which shape a picture runs in, and the graphs of those shapes. Knows
the tower and the grid of a picture; knows no request and no page. Engine thread only.

On a GPU a grid runs as one of a few numbers of patches (eight per octave), each a CUDA graph that
was captured while warming; what depends on the grid is an input. A picture beyond the largest runs
the same kernels one by one: its computing takes longer than its launches. On the CPU a picture runs
in its own shape, in plain torch. Nothing here asks the device for a value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from predictors.chat.inputs import DEFAULT_MAX_PIXELS, Patches
from predictors.chat.pixels import Recipe, cut, resized
from predictors.compute.device.finite import check_finite
from predictors.compute.device.graphs import Captured, Graphs
from predictors.compute.device.placement import Placement
from predictors.compute.device.transfer import to_device
from predictors.compute.kernels.attention import Attention, choose_attention, sdpa
from predictors.compute.profiling.profiler import staged
from predictors.models.qwen2_5_vl.vision.grid import (
    GridPlan,
    frequencies_of,
    num_packed,
    packed_grid,
    plan_grid,
)
from predictors.models.qwen2_5_vl.vision.operations import Plain
from predictors.models.qwen2_5_vl.vision.tower import VisionTower

GRID_PLANS = 256  # kept; one of 1024 x 1024 pixels takes 0.2 MB on a GPU, 3.6 MB on the CPU
LEAST_BUCKET = 64
MOST_BUCKET = 2**14  # 3.2 megapixels: from there on launches hide behind what they launch
PER_OCTAVE = 8
ALIGNED = 16
"""Rows of a pass and columns of its input come in multiples, as fast matmuls want them."""


class Pictures:
    """Owns the vision tower. `max_pixels` is the largest area after resizing that gets a graph of
    its own. `is_fused` (default: on CUDA in 16 bits) takes the kernels instead of plain torch."""

    def __init__(
        self,
        tower: VisionTower,
        placement: Placement,
        graphs: Graphs,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        is_fused: bool | None = None,
    ) -> None:
        self._tower = tower
        self._shape = tower.shape
        self._placement = placement
        self._graphs = graphs
        is_narrow = (
            placement.is_cuda and placement.dtype.itemsize == 2
        )  # else too large for a program
        self._is_fused = is_narrow if is_fused is None else is_fused
        self.buckets = buckets_for(min(max_pixels // self._shape.patch**2, MOST_BUCKET))
        self._captured: dict[int, Captured[Tensor]] = {}
        self._frequencies = to_device(frequencies_of(self._shape), placement)
        self._attention: Attention = sdpa
        self._width = _up(self._shape.patch_values, ALIGNED)
        self._plan = lru_cache(maxsize=GRID_PLANS)(self._make_plan)
        self._ints = lru_cache(maxsize=GRID_PLANS)(self._make_ints)
        self._levels = lru_cache(maxsize=4)(self._make_levels)

    @staged("vision")
    @torch.no_grad()
    def encode(self, patches: Patches) -> Tensor:
        """Decoder tokens (merged, hidden) of one picture, in memory of their own. Launches only."""
        if self._is_fused:
            return self._encode_fused(patches)
        ops = Plain(self._plan(patches.grid), self._shape.heads, self._shape.merge)
        tokens: Tensor = self._tower(self._values(patches), ops)
        return tokens

    def _values(self, patches: Patches) -> Tensor:
        """Patches (patches, values) on the device, prepared there if they are not already."""
        kind = self._placement
        if patches.recipe is None:
            return to_device(patches.values, kind, kind.dtype)
        size = (patches.grid[0] * patches.grid[1], self._shape.patch_values)
        return self._fill(patches, torch.empty(size, dtype=kind.dtype, device=kind.device))

    def _fill(self, patches: Patches, out: Tensor) -> Tensor:
        """The picture's patches into `out` (patches, columns), on the device."""
        if patches.recipe is None:
            width = patches.values.shape[1]
            out[:, :width] = to_device(patches.values, self._placement)
            out[:, width:].zero_()
            return out
        recipe = patches.recipe
        levels = resized(to_device(patches.values, self._placement), patches.grid, recipe.patch)
        return cut(levels, recipe, self._levels(recipe), out)

    # -- fused -----------------------------------------------------------------------------------
    def _encode_fused(self, patches: Patches) -> Tensor:
        count = patches.grid[0] * patches.grid[1]
        merged = count // self._shape.merge**2
        bucket = self.bucket_of(count)
        ints = self._ints(patches.grid, bucket)
        captured = self._captured.get(bucket)
        if captured is None:
            rows = self._rows(bucket)
            self._fill(patches, rows[:count])
            return self._forward(rows, ints)[:merged]
        if not captured.inputs:
            raise RuntimeError("the graphs were closed")
        rows = captured.inputs[0]
        self._fill(patches, rows[:count])  # rows beyond may hold anything
        return captured(rows, ints)[:merged].clone()  # the next graph uses this memory

    def bucket_of(self, count: int) -> int:
        """How many patches the pass of a picture of `count` has: beyond the buckets the next
        multiple of 16."""
        return next((b for b in self.buckets if b >= count), _up(count, ALIGNED))

    def _forward(self, rows: Tensor, ints: Tensor) -> Tensor:
        from predictors.models.qwen2_5_vl.vision.fused import FusedVision  # CUDA only: has Triton

        ops = FusedVision(ints, len(rows), self._shape, self._frequencies, self._attention)
        tokens: Tensor = self._tower(rows, ops)
        return tokens

    def _rows(self, bucket: int) -> Tensor:
        kind = self._placement
        return torch.zeros(bucket, self._width, dtype=kind.dtype, device=kind.device)

    # -- kept ------------------------------------------------------------------------------------
    def _make_plan(self, grid: tuple[int, int]) -> GridPlan:
        return plan_grid(*grid, self._shape).moved(partial(to_device, placement=self._placement))

    def _make_ints(self, grid: tuple[int, int], bucket: int) -> Tensor:
        return to_device(packed_grid(*grid, bucket, self._shape), self._placement)

    def _make_levels(self, recipe: Recipe) -> Tensor:
        return to_device(recipe.levels(), self._placement)

    # -- warm-up ---------------------------------------------------------------------------------
    def warm_shapes(self) -> list[tuple[str, Callable[[], object]]]:
        """Name and run of every promised shape, the largest first: they share one pool."""
        if not self._is_fused:
            return [("vision", self._warm)]
        shapes: list[tuple[str, Callable[[], object]]] = [
            ("vision attention", self._choose_attention)
        ]
        shapes += [(f"vision {b}", partial(self._capture, b)) for b in self.buckets[::-1]]
        return [*shapes, ("vision", self._warm)]

    @torch.no_grad()
    def _choose_attention(self) -> None:
        from predictors.models.qwen2_5_vl.vision.fused import padded_head

        choice = choose_attention(
            self._placement,
            self._shape.heads,
            padded_head(self._shape.head_dim),
            self.buckets[-1],
        )
        self._attention = choice.attention

    def _capture(self, bucket: int) -> None:
        if bucket in self._captured:
            return
        ints = torch.zeros(num_packed(bucket, self._shape), dtype=torch.int64)
        examples = (self._rows(bucket), to_device(ints, self._placement))
        captured = self._graphs.capture(self._forward, examples, f"vision {bucket}")
        self._captured[bucket] = captured

    def _warm(self) -> None:
        """A picture of more than one window, both as patches and as it was decoded."""
        shape = self._shape
        side = shape.merge * (shape.side + 1)
        # no zeros: a broken weight times zero may look sound
        values = torch.linspace(-1, 1, side * side * shape.patch_values).view(side * side, -1)
        made = [self.encode(Patches(b"", (side, side), 0, values))]
        if self._is_fused:
            recipe = Recipe((0.5,) * 3, (0.5,) * 3, 1 / 255, shape.patch, shape.merge)
            picture = torch.full((shape.window, shape.window, 3), 90, dtype=torch.uint8)
            made.append(self.encode(Patches(b"", (side, side), 0, picture, recipe)))
        check_finite(made, "the vision features of a warm-up picture")


def buckets_for(most: int) -> tuple[int, ...]:
    """Numbers of patches, ascending, that hold every number up to `most`: eight per octave, so that
    at most an eighth of the next smaller one is padding."""
    sizes = {LEAST_BUCKET}
    octave = LEAST_BUCKET
    while max(sizes) < most:
        steps = range(1, PER_OCTAVE + 1)
        sizes.update(_up(octave + octave * step // PER_OCTAVE, ALIGNED) for step in steps)
        octave *= 2
    enough = min((size for size in sizes if size >= most), default=LEAST_BUCKET)
    return tuple(sorted(size for size in sizes if size <= enough))


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
