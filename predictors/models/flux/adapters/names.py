"""Reads the names of an adapter's tensors: which layer they are of, and which half of its change.

Names are cut at dots and looked up in tables, so that the work grows with a name's length only. A
tensor of another kind of adapter is recognised by one part of its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from predictors.models.flux.adapters.places import CLIP, T5, TRANSFORMER, Place, Places
from predictors.models.flux.adapters.products import KINDS

DOWN, UP, ALPHA = "down", "up", "alpha"
HALVES: Mapping[str, str] = {
    "lora_A": DOWN,
    "lora_B": UP,
    "lora_down": DOWN,
    "lora_up": UP,
}
WRAPPERS = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "module.")
"""Prefixes of names by PEFT, ComfyUI and torch; a name may have several."""
DOTTED_PARTS = (
    ("transformer.", TRANSFORMER),
    ("text_encoder.", CLIP),
    ("text_encoders.clip_l.transformer.", CLIP),
    ("text_encoder_2.", T5),
    ("text_encoders.t5xxl.transformer.", T5),
)
FLAT_PARTS = (
    ("lora_unet_", TRANSFORMER),
    ("lora_transformer_", TRANSFORMER),
    ("lycoris_", TRANSFORMER),
    ("lora_te1_", CLIP),
    ("lora_te_", CLIP),
    ("lora_te2_", T5),
    ("lora_te3_", T5),
)
"""Prefixes of names without dots: kohya's, OneTrainer's and LyCORIS' spellings."""
OWN_NAMES = (("text_model.", CLIP), ("encoder.layers.", CLIP), ("encoder.block.", T5))
"""Prefixes of the text encoders' own layers."""
FORMATS: Mapping[str, str] = {
    "base_model.model.": "PEFT",
    "diffusion_model.": "ComfyUI",
    "model.diffusion_model.": "ComfyUI",
    "transformer.": "diffusers",
    "lora_unet_": "kohya",
    "lora_te": "kohya",
    "lora_transformer_": "OneTrainer",
    "lycoris_": "LyCORIS",
}
XLABS, AUTHORS, PLAIN = "XLabs", "Black Forest Labs", "diffusers"
FOREIGN_PREFIXES: tuple[tuple[str, str], ...] = (
    ("lokr_t", "a LoKr adapter of a convolution"),
    ("hada_t", "a LoHa adapter of a convolution"),
    ("dora_scale", "a DoRA adapter"),
    ("lora_magnitude", "a DoRA adapter"),
    ("magnitude", "a DoRA adapter"),
    ("oft_", "an OFT adapter"),
    ("boft_", "a BOFT adapter"),
    ("ia3_", "an IA3 adapter"),
    ("vera_", "a VeRA adapter"),
    ("glora", "a GLoRA adapter"),
    ("lora_mid", "a LoCon adapter with a core tensor"),
    ("lora_embedding_", "an adapter of an embedding"),
    ("lora_controlnet", "a ControlNet adapter"),
    ("bundle_emb", "a textual inversion"),
    ("string_to_param", "a textual inversion"),
    ("modules_to_save", "full weights beside an adapter (modules_to_save)"),
    ("original_module", "full weights beside an adapter (modules_to_save)"),
    ("base_layer", "the base weights beside an adapter"),
)
"""Beginnings of one part of a name, and what has it."""
FOREIGN_ENDS: Mapping[str, str] = {
    "diff": "differences of full weights or norms (diff)",
    "diff_b": "differences of biases (diff_b)",
    "set_weight": "full weights (set_weight)",
    "reshape_weight": "an adapter that changes a layer's shape (reshape_weight)",
    "a1": "a GLoRA adapter",
    "a2": "a GLoRA adapter",
    "b1": "a GLoRA adapter",
    "b2": "a GLoRA adapter",
}
"""Last parts of a name, `weight` and PEFT's name of the adapter left out, and what has them."""


@dataclass(frozen=True, slots=True)
class Half:
    """One tensor of an adapter."""

    place: Place
    kind: str
    """`DOWN`, `UP`, `ALPHA` or one of `products.KINDS`."""
    adapter: str
    """PEFT's name of the adapter in the tensor's name; empty without one."""
    part: str
    path: str
    """The layer as the tensor names it, its part left out."""


def read_name(name: str, places: Places) -> Half | None:
    """The meaning of a tensor's name, or None for one that has no place in the checkpoint."""
    cut = _cut_kind(name)
    if cut is None:
        return None
    path, kind, adapter = cut
    part, path = split_part(path)
    place = places.find(part, path) or places.find_flat(part, path)
    return None if place is None else Half(place, kind, adapter, part, path)


def foreign_kind(name: str, places: Places) -> str | None:
    """The kind of adapter or weight that a tensor belongs to, if it is not read; else None."""
    pieces = name.split(".")
    for piece in pieces:
        for prefix, kind in FOREIGN_PREFIXES:
            if piece.startswith(prefix):
                return kind
    ends = pieces[:-1] if len(pieces) > 1 and pieces[-1] in ("weight", "default") else pieces
    if ends[-1] in FOREIGN_ENDS:
        return FOREIGN_ENDS[ends[-1]]
    if len(pieces) > 1 and pieces[-1] == "bias" and set(pieces[-3:-1]) & set(HALVES):
        return "biases of low-rank layers (lora_bias)"
    part, rest = split_part(name)
    if name.endswith(("norm.scale", "_norm.weight", ".norm_q.weight", ".norm_k.weight")):
        return "weights of norms"
    if places.is_tensor(part, rest):
        return "full weights of a layer beside an adapter (modules_to_save)"
    return None


def split_part(path: str) -> tuple[str, str]:
    """The part of a layer, and its path without whatever names the part."""
    for prefix, part in FLAT_PARTS:
        if path.startswith(prefix):
            return part, path[len(prefix) :]
    path = path[_skip_wrappers(path) :]
    for prefix, part in DOTTED_PARTS:
        if path.startswith(prefix):
            return part, path[len(prefix) :]
    # PEFT's own folder of a text encoder names no part
    for prefix, part in OWN_NAMES:
        if path.startswith(prefix):
            return part, path
    return TRANSFORMER, path


def _skip_wrappers(path: str) -> int:
    at, before = 0, -1
    while at != before:
        before = at
        at += next((len(each) for each in WRAPPERS if path.startswith(each, at)), 0)
    return at


def format_of(name: str) -> str:
    """The trainer or tool whose spelling a name has, for reports."""
    if ".processor." in name:
        return XLABS
    for prefix, kind in FORMATS.items():
        if name.startswith(prefix):
            return kind
    return AUTHORS if name.startswith(("double_blocks.", "single_blocks.")) else PLAIN


def _cut_kind(name: str) -> tuple[str, str, str] | None:
    """The layer, the kind of the tensor and PEFT's name of the adapter, or None."""
    path, _, last = name.rpartition(".")
    if last == "alpha":
        return path, ALPHA, ""
    if last in KINDS:
        return path, last, ""
    if last != "weight":
        return None
    path, _, last = path.rpartition(".")
    if last in HALVES:
        return path, HALVES[last], ""
    if last in (DOWN, UP):  # diffusers before PEFT, and XLabs
        before, _, layer = path.rpartition(".")
        return (before if layer in ("lora", "lora_linear_layer") else path), last, ""
    adapter = last
    path, _, last = path.rpartition(".")
    return (path, HALVES[last], adapter) if last in HALVES and adapter else None
