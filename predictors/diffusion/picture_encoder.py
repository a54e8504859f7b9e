"""Runs a model's picture encoder, once for each of a caller's pictures, however many edits use it.

On a GPU the encoder of a promised size is one CUDA graph. Engine thread, in `torch.inference_mode`.
"""

from __future__ import annotations

from collections.abc import Collection
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from predictors.compute.device.graphs import Captured, Graphs
from predictors.compute.device.placement import Placement, to_device
from predictors.compute.profiling.profiler import staged
from predictors.diffusion.model import DiffusionPasses, EncodingPasses
from predictors.diffusion.request import SourcePicture
from predictors.diffusion.sources import EncodedSource, Encoding, SourceInputs

Moments = dict[str, Tensor]
"""The posterior's moments of each `Encoding`, by its field in `SourceInputs`."""


class PictureEncoder:
    """The encoder of one loaded checkpoint, with its graphs. Graphs are made by `graphs`."""

    def __init__(
        self,
        passes: DiffusionPasses,
        placement: Placement,
        graphs: Graphs,
        promised: Collection[tuple[int, int]],
    ) -> None:
        """`promised` are the (height, width) in pixels that are warmed."""
        self._passes = passes
        self._placement = placement
        self._graphs = graphs
        self._promised = promised
        self._captured: dict[tuple[int, int], Captured[Tensor]] = {}
        # no caller's picture is held longer than its jobs
        self._moments: WeakKeyDictionary[SourcePicture, Moments] = WeakKeyDictionary()

    @staged("vae_encode")
    def encode(self, inputs: SourceInputs, *, captures: bool) -> EncodedSource:
        """Encode the parts of a picture that are not encoded yet. Launches only. `captures`: graphs
        may be made."""
        place, dtype = self._placement, self._placement.dtype
        known = self._moments.setdefault(inputs.source, {})
        latents = {}
        for name, each in inputs.encodings.items():
            if name not in known:
                known[name] = self._encoded(each, captures)
            sample = to_device(each.sample, place)
            latents[name] = self._encoding.encoded_latents(known[name], sample)
        mask, beside = inputs.mask, latents.get("beside")
        if beside is not None and inputs.features is not None:
            beside = torch.cat((beside, to_device(inputs.features, place, dtype)), dim=1)
        return EncodedSource(
            start=latents.get("start"),
            mask=None if mask is None else to_device(mask, place, dtype),
            beside=beside,
            reference=latents.get("reference"),
        )

    @property
    def _encoding(self) -> EncodingPasses:
        assert isinstance(self._passes, EncodingPasses)
        return self._passes

    def _encoded(self, each: Encoding, captures: bool) -> Tensor:
        pixels, keep = (
            to_device(each.pixels, self._placement),
            to_device(each.keep, self._placement),
        )
        height, width = keep.shape
        captured = self._captured.get((height, width))
        if captured is None:
            is_promised = (height, width) in self._promised
            run = self._encoding.encoder(is_promised=is_promised)
            if not (is_promised and captures):
                return run(pixels, keep)
            captured = self._graphs.capture(run, (pixels, keep), f"encode {width}x{height}")
            self._captured[height, width] = captured
        return captured(pixels, keep).clone()  # a graph's result holds until the next replay only
