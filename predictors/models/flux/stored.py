"""Reads the headers of a part of a FLUX.1 folder and checks every tensor against its config.
Imports neither torch nor a model's library; descriptions of folders and loading both use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictors.compute.checkpoint.accounting import (
    ADVICE,
    FLOATS,
    FP8,
    ExpectedTensor,
    check_tensors,
)
from predictors.compute.checkpoint.folder import read_json
from predictors.compute.checkpoint.headers import Header, StoredTensor, headers_of, read_headers
from predictors.compute.checkpoint.quantised.config import read_quantisation
from predictors.compute.checkpoint.quantised.recognise import Quantised, recognise
from predictors.errors import EngineFailed
from predictors.models.flux.folder import QUANTISE
from predictors.models.flux.tensors import NOTHING, UNUSED, block_linears, tensors_of, with_defaults

NATIVE = "compressed-tensors FP8"


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """A part as its files hold it. `wanted` are the tensors that its model reads."""

    stored: Mapping[str, StoredTensor]
    quantised: Quantised
    wanted: Mapping[str, ExpectedTensor]


def check_part(
    folder: Path,
    part: str,
    variant: str = "",
    *,
    is_native: bool = False,
    encodes: bool = False,
) -> CheckedPart:
    """The tensors of a part in its `folder`; raises `EngineFailed` unless they are those that its
    config asks for.

    `is_native`: the transformer's blocks are in fp8, as `quantize` writes them, and stay so.
    `encodes`: the autoencoder's encoder is read.
    """
    raw = read_json(folder, "config.json", f"{part}/config.json")
    config = with_defaults(part, raw)
    stored = read_headers(folder, variant)
    if is_native:
        quantised = Quantised(NATIVE, {}, headers_of(stored))
    else:
        quantised = recognise(stored, read_quantisation(raw, folder, part), lambda _: part)
    wanted = check_headers(
        part, config, quantised.headers, is_native=is_native, encodes=encodes and part == "vae"
    )
    return CheckedPart(stored, quantised, wanted)


def stores_encoder(folder: Path, variant: str = "") -> bool:
    """True if the autoencoder in `folder` has weights of an encoder. Reads headers only."""
    try:
        return any(name.startswith("encoder.") for name in read_headers(folder, variant))
    except EngineFailed:  # said when weights are loaded
        return False


def check_headers(
    part: str,
    config: Mapping[str, Any],
    headers: Mapping[str, Header],
    *,
    is_native: bool = False,
    encodes: bool = False,
) -> dict[str, ExpectedTensor]:
    """The tensors that a part's `config`, all defaults filled in, asks for; raises `EngineFailed`
    unless they are those of `headers`."""
    shapes = tensors_of(part, config, headers, encodes=encodes)
    wanted = {name: ExpectedTensor(shape, FLOATS) for name, shape in shapes.items()}
    if is_native:
        for name, narrow in block_linears(config).items():
            wanted[name] = ExpectedTensor(narrow, FP8)
            wanted[f"{name}_scale"] = ExpectedTensor((narrow[0], 1))
    advice = f"{ADVICE}; {QUANTISE}" if part == "transformer" else ADVICE
    unused = NOTHING if encodes else UNUSED[part]
    check_tensors(part, headers, wanted, unused, advice)
    return wanted
