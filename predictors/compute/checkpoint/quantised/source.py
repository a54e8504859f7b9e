"""A component's tensors as its model reads them: stored ones, and quantised weights as the floats
they stand for."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from predictors.compute.checkpoint.headers import Header
from predictors.compute.checkpoint.quantised.dequantise import dequantised
from predictors.compute.checkpoint.quantised.layers import Layer
from predictors.compute.checkpoint.quantised.recognise import (
    ComponentOf,
    Quantised,
    recognise_folder,
)
from predictors.compute.checkpoint.shards import Shards
from predictors.compute.checkpoint.summary import size_text
from predictors.errors import EngineFailed

log = logging.getLogger(__name__)


class PlainTensors:
    """Implements `Source` for a folder that may be quantised. A context manager, as `Shards`, which
    reads the stored tensors. Iterates over the names that the model may read."""

    def __init__(self, folder: Path, component: str | ComponentOf, variant: str = "") -> None:
        """`variant` is the wanted one of the files."""
        self._folder = folder
        self._component = component
        self._variant = variant
        self._shards = Shards(folder, variant)
        self.quantised = Quantised("", {}, {})

    def __enter__(self) -> PlainTensors:
        self._shards.__enter__()
        try:
            self.quantised = recognise_folder(self._folder, self._component, self._variant)
        except BaseException:
            self._shards.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._shards.__exit__(*exc)

    def __contains__(self, name: str) -> bool:
        return name in self.quantised.headers

    def __iter__(self) -> Iterator[str]:
        return iter(self.quantised.headers)

    def headers(self) -> Mapping[str, Header]:
        return self.quantised.headers

    def shape(self, name: str) -> tuple[int, ...]:
        return self._header(name).shape

    def read(self, name: str) -> Tensor:
        """A tensor on the host: in its stored dtype, or dequantised in float32."""
        layer = self.quantised.layers.get(name)
        if layer is None:
            self._header(name)
            return self._shards.read(name)
        return self._dequantised(layer, torch.device("cpu"))

    def copy_into(self, pairs: Iterable[tuple[Tensor, str]]) -> None:
        """As `Shards.copy_into`. Quantised weights are dequantised one by one on the device of
        their target, in float32, and rounded once to its dtype."""
        plain, layers = [], []
        for target, name in pairs:
            layer = self.quantised.layers.get(name)
            plain += [(target, name)] if layer is None else []
            layers += [(target, layer)] if layer is not None else []
        self._shards.copy_into(plain)
        for target, layer in layers:
            if layer.shape != tuple(target.shape):
                raise EngineFailed(
                    f"tensor {layer.name} has shape {list(layer.shape)}; the config asks for "
                    f"{list(target.shape)}"
                )
            with torch.inference_mode():  # targets may be inference tensors
                target.copy_(self._dequantised(layer, target.device))
                if not bool(target.isfinite().all()):
                    raise EngineFailed(
                        f"weight {layer.name} ({layer.method}) is not finite once it is "
                        f"dequantised to {target.dtype}: fetch the checkpoint again"
                    )

    def _dequantised(self, layer: Layer, device: torch.device) -> Tensor:
        with torch.inference_mode():
            weight: Tensor = dequantised(layer, lambda name: self._shards.read(name).to(device))
            return weight

    def _header(self, name: str) -> Header:
        if name not in self.quantised.headers:
            raise EngineFailed(f"the checkpoint's {self._folder.name} has no tensor {name}")
        return self.quantised.headers[name]


def log_quantised(
    component: str, quantised: Quantised, names: Collection[str], dtype: torch.dtype
) -> None:
    """Say how the weights `names` of a component are stored and served, if any is quantised."""
    method = quantised.method_of(names)
    if not method:
        return
    values = sum(math.prod(quantised.headers[name].shape) for name in names)
    kind = str(dtype).removeprefix("torch.")
    log.info(
        "%s: quantised (%s), served in %s: %s%s",
        component,
        method,
        kind,
        size_text(values * dtype.itemsize),
        f"; activations are not quantised, they stay in {kind}" if quantised.narrows_inputs else "",
    )
