"""Runs pictures through a model's vision encoder, and caches the encoded ones. Engine thread only.

On a GPU a picture runs as one of a few numbers of patches (eight per octave), each a CUDA graph
that was captured while warming; a larger picture runs the same kernels one by one. On the CPU a
picture runs in its own shape, in plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from predictors.chat.adapters.changes import (
    DenseChanges,
    PlainChanges,
    SlotScales,
    dense_weights,
    plain_scales,
)
from predictors.chat.adapters.tables import AdapterTables
from predictors.chat.memory import MOST_BUCKET
from predictors.chat.model import EncodedPicture, VisionEncoder
from predictors.chat.placing import PlacedPicture
from predictors.chat.promised import PassKind, PromisedPass
from predictors.chat.sequence import ChatMetrics, Sequence
from predictors.chat.vision.pixels import (
    DEFAULT_MAX_PIXELS,
    PatchFormat,
    PreparedPicture,
    cut,
    resized,
)
from predictors.compute.caches import ByteBoundedCache
from predictors.compute.device.graphs import Captured, Graphs
from predictors.compute.device.placement import Placement, check_finite, to_device
from predictors.compute.profiling.profiler import staged

PACKED_GRIDS = 256  # kept on the device; one of 1024 x 1024 pixels takes 0.2 MB
LEAST_BUCKET = 64
PER_OCTAVE = 8
ALIGNED = 16
"""Rows of a pass and columns of its input come in multiples, as fast matmuls want them."""

SIZED_PARTS = (1, 2, 4, 8)


class PictureRunner:
    """Owns the vision encoder. `max_pixels` is the largest area after resizing that gets a graph of
    its own. `is_fused` (default: on CUDA in 16 bits) takes the kernels instead of plain torch.
    `tables` are those of the adapters that pictures may have. `frames` 2 leaves room for a film's
    steps in the graphs."""

    def __init__(
        self,
        encoder: VisionEncoder,
        placement: Placement,
        graphs: Graphs,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        is_fused: bool | None = None,
        tables: AdapterTables | None = None,
        frames: int = 1,
    ) -> None:
        self._encoder = encoder
        self._placement = placement
        self._graphs = graphs
        # in 32 bits the kernels' tiles are too large for a program
        fits = placement.is_cuda and placement.dtype.itemsize == 2
        self._is_fused = fits if is_fused is None else is_fused
        self.buckets = buckets_for(min(max_pixels // encoder.patch**2, MOST_BUCKET))
        self._tables = tables
        self._captured: dict[int, Captured[Tensor]] = {}
        self._adapted: dict[int, Captured[Tensor]] = {}
        self._width = _up(encoder.patch_values * frames, ALIGNED)
        self._frames = frames
        self._packed = lru_cache(maxsize=PACKED_GRIDS)(self._pack_grid)
        self._levels = lru_cache(maxsize=4)(self._make_levels)

    @staged("vision")
    @torch.no_grad()
    def encode(self, picture: PreparedPicture, adapters: SlotScales = ()) -> EncodedPicture:
        """The features of one picture or step of a film, in memory of their own. `adapters` are
        those of the tower. Asks the device for no value."""
        if self._is_fused:
            return EncodedPicture(self._encode_packed(picture, adapters))
        patches, changes = self._values(picture), None
        if adapters:
            packed = plain_scales(self._adapters, [adapters], self._placement.dtype)
            moved = (to_device(part, self._placement) for part in packed)
            changes = PlainChanges(self._adapters, *moved)
        return EncodedPicture(self._encoder.encode(patches, picture.grid, changes))

    @property
    def _adapters(self) -> AdapterTables:
        assert self._tables is not None
        return self._tables

    def _values(self, picture: PreparedPicture) -> Tensor:
        """Patches (patches, patch_values * frames) on the device, made there if they are not
        already."""
        place = self._placement
        if picture.format is None and picture.frames == 1:
            return to_device(picture.values, place, place.dtype)
        size = (picture.grid[0] * picture.grid[1], self._encoder.patch_values * picture.frames)
        return self._fill(picture, torch.empty(size, dtype=place.dtype, device=place.device))

    def _fill(self, picture: PreparedPicture, out: Tensor) -> Tensor:
        """Write the picture's patches into `out` (patches, columns), on the device."""
        layout, values = picture.format, to_device(picture.values, self._placement)
        if picture.frames > 1:
            return self._fill_step(values, picture, out)
        if layout is None:
            width = values.shape[1]
            out[:, :width] = values
            out[:, width:].zero_()
            return out
        levels = resized(values, picture.grid, layout.patch)
        return cut(levels, layout, self._levels(layout), out)

    def _fill_step(self, values: Tensor, step: PreparedPicture, out: Tensor) -> Tensor:
        """The first frame of a film's step, and what the second one's values are more."""
        width, layout = self._encoder.patch_values, step.format
        if layout is None:
            first, second = values[:, :width], values[:, width:]
        else:
            wide = torch.empty(len(out), width, dtype=torch.float32, device=out.device)
            first, second = (
                cut(resized(frame, step.grid, layout.patch), layout, self._levels(layout), into)
                for frame, into in zip(values, (wide, torch.empty_like(wide)), strict=True)
            )
        out[:, :width] = first
        out[:, width : 2 * width] = second - first
        out[:, 2 * width :].zero_()
        return out

    # -- fused -----------------------------------------------------------------------------------
    def _encode_packed(self, picture: PreparedPicture, adapters: SlotScales) -> Tensor:
        count = picture.grid[0] * picture.grid[1]
        merged = count // self._encoder.merge**2
        bucket = self.bucket_of(count)
        grid = self._packed(picture.grid, bucket)
        run: Callable[..., Tensor] = self._encoder.encode_packed
        weights: tuple[Tensor, ...] = ()
        captured = self._captured.get(bucket)
        if adapters:
            moved = to_device(dense_weights(self._adapters, [adapters]), self._placement)
            run, weights, captured = self._run_adapted, (moved,), self._adapted.get(bucket)
        if captured is None:
            rows = self._rows(bucket)
            self._fill(picture, rows[:count])
            return run(rows, grid, *weights)[:, :merged]
        if not captured.inputs:
            raise RuntimeError("the graphs were closed")
        rows = captured.inputs[0]
        self._fill(picture, rows[:count])  # rows beyond may hold anything
        # the next graph uses this memory
        return captured(rows, grid, *weights)[:, :merged].clone()

    def _run_adapted(self, rows: Tensor, grid: Tensor, weights: Tensor) -> Tensor:
        changes = DenseChanges(self._adapters, self._adapters.repeated(weights))
        return self._encoder.encode_packed(rows, grid, changes)

    def graph_of(self, count: int) -> int | None:
        """Rows of the promised graph for a picture of `count` patches, if there is one."""
        bucket = self.bucket_of(count)
        return bucket if self._is_fused and bucket in self.buckets else None

    def bucket_of(self, count: int) -> int:
        """Rows of the pass of `count` patches: a bucket, beyond them the next multiple of 16."""
        return next((b for b in self.buckets if b >= count), _up(count, ALIGNED))

    def _rows(self, bucket: int) -> Tensor:
        place = self._placement
        return torch.zeros(bucket, self._width, dtype=place.dtype, device=place.device)

    def _pack_grid(self, grid: tuple[int, int], bucket: int) -> Tensor:
        return to_device(self._encoder.pack_grid(grid, bucket), self._placement)

    def _make_levels(self, layout: PatchFormat) -> Tensor:
        return to_device(layout.levels(), self._placement)

    # -- warm-up ---------------------------------------------------------------------------------
    def warm_shapes(self) -> list[PromisedPass]:
        """Every promised pass, the largest first: they share one pool."""
        probe, tower = (
            partial(PromisedPass, PassKind.PROBE, 0),
            partial(PromisedPass, PassKind.TOWER),
        )
        probes = [probe("vision", self._warm)]
        if self._tables is not None:
            probes.insert(0, probe("adapted vision", self._warm_adapted))
        if not self._is_fused:
            return probes
        shapes = [probe("vision attention", self._choose_attention)]
        for bucket in self.buckets[::-1]:
            if self._tables is not None:
                run = partial(self._capture_adapted, bucket)
                shapes.append(tower(bucket, f"adapted vision {bucket}", run))
            shapes.append(tower(bucket, f"vision {bucket}", partial(self._capture, bucket)))
        return [*shapes, *probes]

    @torch.no_grad()
    def _choose_attention(self) -> None:
        self._encoder.choose_attention(self.buckets[-1])

    def _capture(self, bucket: int) -> None:
        if bucket in self._captured:
            return
        grid = (self._encoder.merge, self._encoder.merge)
        examples = (self._rows(bucket), self._pack_grid(grid, bucket))
        captured = self._graphs.capture(self._encoder.encode_packed, examples, f"vision {bucket}")
        self._captured[bucket] = captured

    def _capture_adapted(self, bucket: int) -> None:
        if bucket in self._adapted:
            return
        grid = self._pack_grid((self._encoder.merge, self._encoder.merge), bucket)
        weights = to_device(dense_weights(self._adapters, [((0, 1.0),)]), self._placement)
        examples, name = (self._rows(bucket), grid, weights), f"adapted vision {bucket}"
        self._adapted[bucket] = self._graphs.capture(self._run_adapted, examples, name)

    def _warm_adapted(self) -> None:
        self._warm(((0, 1.0),))

    def _warm(self, adapters: SlotScales = ()) -> None:
        """Encode the warm-up picture, as patches and as a GPU gets it."""
        grid = self._encoder.warm_grid
        count = grid[0] * grid[1]
        # not zeros: a broken weight times zero may look sound
        values = torch.linspace(-1, 1, count * self._encoder.patch_values).view(count, -1)
        made = [self.encode(PreparedPicture(b"", grid, 0, values), adapters).features]
        if self._is_fused:
            made.append(self.encode(self._gray(grid), adapters).features)
        if self._frames > 1:
            step = PreparedPicture(b"", grid, 0, torch.cat((values, -values), 1), frames=2)
            made.append(self.encode(step, adapters).features)
        check_finite(made, "the vision features of a warm-up picture")

    def _gray(self, grid: tuple[int, int]) -> PreparedPicture:
        """A gray picture of `grid` (rows, columns) patches, as a GPU gets it."""
        patch = self._encoder.patch
        layout = PatchFormat((0.5,) * 3, (0.5,) * 3, 1 / 255, patch, self._encoder.merge)
        # a patch smaller each way, so that it is resized
        size = ((grid[0] - 1) * patch, (grid[1] - 1) * patch, 3)
        return PreparedPicture(b"", grid, 0, torch.full(size, 90, dtype=torch.uint8), layout)

    def sized_pictures(self) -> dict[int, PreparedPicture]:
        """Gray pictures by their tokens: the largest square one that has a graph of its own, and
        those of a half, a quarter and an eighth of its side."""
        merge = self._encoder.merge
        most = math.isqrt(self.buckets[-1]) // merge
        sides = {max(1, most // part) for part in SIZED_PARTS}
        return {side**2: self._gray((merge * side, merge * side)) for side in sorted(sides)}


class PictureCache:
    """Encoded pictures, at most `max_bytes` of them besides those that sequences hold."""

    def __init__(self, max_bytes: int, chat_metrics: ChatMetrics) -> None:
        self._metrics = chat_metrics
        self._kept: ByteBoundedCache[bytes, EncodedPicture] = ByteBoundedCache(
            max_bytes,
            lambda picture: picture.features.nbytes,
            chat_metrics.cache_counter("vision_embedding"),
        )

    def describe(self) -> dict[str, int]:
        """Size of the cache. Any thread."""
        return {"entries": len(self._kept), "bytes": self._kept.num_bytes}

    def missing(self, sequence: Sequence) -> tuple[tuple[int, int], ...]:
        """Pictures to encode before `sequence` can be read on, see
        `SequenceProgress.new_pictures`."""
        return tuple(
            (max(picture.start, sequence.num_prefilled), picture.length)
            for i, picture in enumerate(sequence.work.pictures)
            if picture.start + picture.length > sequence.num_prefilled
            and i not in sequence.pictures
            and sequence.work.picture_key(picture) not in self._kept
        )

    def within(
        self, sequence: Sequence, part: slice, runner: PictureRunner
    ) -> list[tuple[int, EncodedPicture]]:
        """First row and features of the pictures in a part of the prompt. New ones are encoded by
        `runner`. May be repeated."""
        found = []
        for i, picture in enumerate(sequence.work.pictures):
            first = max(picture.start, part.start)
            end = min(picture.start + picture.length, part.stop)
            if first < end:
                encoded = self._encoded(sequence, i, picture, runner)
                rows = encoded.part(first - picture.start, end - picture.start)
                found.append((first - part.start, rows))
        return found

    def drop(self, sequence: Sequence) -> None:
        """Drop the sequence's pictures, which may be damaged."""
        for picture in sequence.work.pictures:
            self._kept.drop(sequence.work.picture_key(picture))

    def close(self) -> None:
        self._kept = ByteBoundedCache(0, lambda picture: picture.features.nbytes)

    def _encoded(
        self, sequence: Sequence, index: int, picture: PlacedPicture, runner: PictureRunner
    ) -> EncodedPicture:
        encoded, key = sequence.pictures.get(index), sequence.work.picture_key(picture)
        if encoded is None:
            encoded = self._kept.get(key)
        if encoded is None:
            started = sequence.job.clock()
            encoded = runner.encode(picture.prepared, sequence.vision_adapters)
            self._kept.put(key, encoded)
            seconds = sequence.job.clock() - started
            self._metrics.observe_stage(sequence.job, "vision_encode", seconds)
        sequence.pictures[index] = encoded  # the cache may drop it before the last chunk
        return encoded


def buckets_for(most: int) -> tuple[int, ...]:
    """Numbers of patches, ascending, up to one that holds `most`: eight per octave, so that padding
    is at most an eighth of the next smaller number."""
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
