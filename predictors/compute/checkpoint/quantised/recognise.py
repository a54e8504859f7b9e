"""Describes a component's quantisation from its config and headers: the layers, what method stores
them, and the plain tensors that its model will read. Imports no torch.

Every stored tensor is either plain, a part of a layer, or left for `accounting` to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from predictors.compute.checkpoint.accounting import FLOATS, find_quantised
from predictors.compute.checkpoint.folder import UNQUANTISED, read_if_there, shown
from predictors.compute.checkpoint.headers import Header, StoredTensor, headers_of, read_headers
from predictors.compute.checkpoint.quantised.config import NamedQuantisation, read_quantisation
from predictors.compute.checkpoint.quantised.layers import Layer
from predictors.compute.checkpoint.quantised.packed import find_compressed, find_transposed
from predictors.compute.checkpoint.quantised.parts import FLOAT8, Parts
from predictors.compute.checkpoint.quantised.scaled import find_scaled
from predictors.compute.checkpoint.quantised.tables import find_table
from predictors.errors import EngineFailed

ComponentOf = Callable[[str], str]
"""From a stored tensor's name to the part of the model that it belongs to, for messages."""
MARKER = re.compile(r"(^|\.)scaled_fp8$")
"""ComfyUI's tensor that says which type all scaled weights have."""
PREFIXES = ("model", "language_model")  # modules that libraries nest the rest in
WIDE = Header("F32", ()).dtype  # of dequantised weights, whatever they are served in
CASTS = "float8 casts without scales"


@dataclass(frozen=True, slots=True)
class Quantised:
    """How a component is stored, and what its model reads."""

    method: str
    """As messages call it; empty if nothing is quantised."""
    layers: Mapping[str, Layer]
    """By the name of the weight."""
    headers: Mapping[str, Header]
    """The tensors that the model reads; dequantised weights are float32."""
    narrows_inputs: bool = False
    """True if the author's library quantises activations, which stay wide here."""

    def method_of(self, names: Iterable[str]) -> str:
        """As `method`, for some of the tensors that the model reads."""
        found = sorted({self.layers[name].method for name in names if name in self.layers})
        return " and ".join(found) or (self.method if not self.layers else "")


def recognise_folder(folder: Path, component: str | ComponentOf, variant: str = "") -> Quantised:
    """The description of a component's folder. Raises `EngineFailed` for a method that is not
    served, layers that are not as the method stores them, and broken files."""
    of = component if callable(component) else lambda _: component
    stored = read_headers(folder, variant)
    config = read_if_there(folder, "config.json")
    return recognise(stored, read_quantisation(config, folder, of("")), of)


def recognise(
    stored: Mapping[str, StoredTensor], named: NamedQuantisation | None, component: ComponentOf
) -> Quantised:
    """As `recognise_folder`, for tensors and the quantisation that their config names."""
    layers = _find_layers(Parts(stored, component), named)
    headers = headers_of(stored)
    _check_agreement(layers, headers, named, component)
    for layer in layers.values():
        for name in (*layer.parts.values(), *layer.unread):
            headers.pop(name, None)
    if any("ComfyUI" in layer.method for layer in layers.values()):
        headers = {name: header for name, header in headers.items() if not MARKER.search(name)}
    is_cast = not layers and named is None and _are_casts(headers)
    if is_cast:
        headers = {
            name: Header(WIDE, header.shape) if header.dtype in FLOAT8 else header
            for name, header in headers.items()
        }
    headers |= {name: Header(WIDE, layer.shape) for name, layer in layers.items()}
    method = " and ".join(sorted({layer.method for layer in layers.values()}))
    narrows = bool(named and named.narrows_inputs)
    return Quantised(
        CASTS if is_cast else method,
        layers,
        headers,
        narrows or any(layer.narrows_inputs for layer in layers.values()),
    )


def _find_layers(parts: Parts, named: NamedQuantisation | None) -> dict[str, Layer]:
    kinds: dict[str, Callable[[str], Layer | None]] = {
        ".weight_packed": lambda stem: find_compressed(parts, named, stem),
        ".qweight": lambda stem: find_transposed(parts, named, stem),
        ".weight.absmax": lambda stem: find_table(parts, stem),
        ".weight": lambda stem: find_scaled(parts, named, stem),
    }
    found: dict[str, Layer] = {}
    for name in parts.stored:
        for ending, find in kinds.items():
            if name.endswith(ending) and (layer := find(name.removesuffix(ending))):
                found[layer.name] = layer
    return found


def _check_agreement(
    layers: Mapping[str, Layer],
    headers: Mapping[str, Header],
    named: NamedQuantisation | None,
    component: ComponentOf,
) -> None:
    """The method that a config names is the one that tensors are stored in, outside the modules
    that it excepts."""
    if named is None:
        return
    if not layers:
        found = find_quantised(headers, headers)
        odd = (name for name, header in headers.items() if header.dtype not in FLOATS)
        name = found[1] if found else next(odd, "")
        stored = f"tensor {name} is not stored so" if name else "no tensor is stored so"
        raise EngineFailed(
            f"{component(name)} is quantised ({named.name}), says its config, but {stored}: fetch "
            "it again; if its weights are unquantised, take quantization_config out of the config"
        )
    ignored = {_bare(name) for name in named.ignored if not name.startswith("re:")}
    patterns = [p for name in named.ignored if (p := _pattern(name)) is not None]
    for name, layer in layers.items():
        first = next(iter(layer.parts.values()))
        if named.method not in layer.owners:
            raise EngineFailed(
                f"{component(name)} is quantised ({layer.method}; tensor {first}), but its config "
                f"names {named.name}: one of them is wrong; {UNQUANTISED}"
            )
        module = name.removesuffix(".weight")
        if _is_ignored(_bare(module), ignored) or any(p.match(module) for p in patterns):
            raise EngineFailed(
                f"{component(name)} is quantised ({layer.method}; tensor {first}), but its config "
                f"excepts the module {shown(module)}: one of them is wrong; {UNQUANTISED}"
            )


def _bare(module: str) -> str:
    """A module's name without the modules that different releases nest it in."""
    words = module.split(".")
    while len(words) > 1 and words[0] in PREFIXES:
        words = words[1:]
    return ".".join(words)


def _is_ignored(module: str, ignored: set[str]) -> bool:
    words = module.split(".")
    return any(".".join(words[:end]) in ignored for end in range(1, len(words) + 1))


def _pattern(name: str) -> re.Pattern[str] | None:
    """The pattern of an entry `re:...`; None for other entries, and for patterns that may take long
    to match, which are not checked."""
    pattern = name.removeprefix("re:")
    if pattern == name or len(re.findall(r"[*+{]", pattern)) > 3 or re.search(r"\)[*+{]", pattern):
        return None
    try:
        return re.compile(pattern)
    except re.error:
        return None


def _are_casts(headers: Mapping[str, Header]) -> bool:
    """True if the weights were cast to float8 without scales.

    A method with scales leaves biases and norms wide. So where all of them are of one float8 type,
    and nothing looks like a scale, none was lost.
    """
    kinds = {h.dtype for n, h in headers.items() if not n.endswith("position_ids")}
    has_vectors = any(len(header.shape) == 1 for header in headers.values())
    return (
        len(kinds) == 1 and kinds <= FLOAT8 and has_vectors and not find_quantised(headers, headers)
    )
