"""Describes a FLUX.1 checkpoint in one safetensors file: which parts are inside, the transformer's
sizes, and where each tensor of diffusers' layout is cut from. Reads headers only, without torch.

The transformer's names are those of its authors (Black Forest Labs), with ComfyUI's prefixes if the
file also holds text encoders or the autoencoder. Any other file is refused by what it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from predictors.compute.checkpoint.accounting import ADAPTED, FLOATS, find_quantised
from predictors.compute.checkpoint.folder import shown
from predictors.compute.checkpoint.headers import (
    OTHER_FORMATS,
    Header,
    StoredTensor,
    read_file_headers,
)
from predictors.compute.checkpoint.quantised.layers import Layer
from predictors.compute.checkpoint.quantised.parts import FLOAT8
from predictors.compute.checkpoint.quantised.recognise import Quantised, recognise
from predictors.errors import EngineFailed, InvalidRequest
from predictors.models.flux.single_file_names import Cut, Sizes, transformer_cuts, vae_cuts

PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "vae": ("vae.", "first_stage_model."),
    "text_encoder": ("text_encoders.clip_l.transformer.",),
    "text_encoder_2": ("text_encoders.t5xxl.transformer.",),
}
"""ComfyUI's, by diffusers' names of the parts."""
ENDINGS = (".safetensors", ".sft")
IGNORED = re.compile(
    r"(^|\.)scaled_fp8$|^text_encoders\.\w+\.(logit_scale|text_projection)$|(^|\.)spiece_model$"
)
"""Names of tensors that are of no use: marks and what ComfyUI derives."""
NORMS = ("query_norm.scale", "key_norm.scale")  # weights, in spite of their names
OTHER_MODELS: tuple[tuple[str, str], ...] = (
    (r"^(double_stream|single_stream)_modulation", "a FLUX.2 transformer"),
    (r"^distilled_guidance_layer\.", "a Chroma transformer"),
    (r"^(model\.)?joint_blocks\.", "a Stable Diffusion 3 transformer"),
    (r"^(input|output)_blocks\.|^conditioner\.", "a Stable Diffusion or SDXL UNet"),
    (r"^(down|up)_blocks\.", "a UNet in diffusers' names"),
    (r"^(pulid_ca|double_blocks\.0\.processor|ip_adapter|image_proj|redux_)", "an image adapter"),
    (r"^(controlnet_|input_hint_block|pos_embed_input)", "a ControlNet"),
    (r"^(txt_in\.individual_token_refiner|double_blocks\.0\.img_attn_qkv)", "a HunyuanVideo model"),
    (r"^double_stream_blocks\.", "a HiDream transformer"),
    (r"^(noise_refiner|cap_embedder)\.", "a Lumina or Z-Image transformer"),
    (r"^blocks\.0\.(cross_attn|self_attn)", "a Wan or Anima transformer"),
    (r"^(encoder\.block\.0|shared\.weight)", "a T5 text encoder"),
    (r"^(text_model\.|transformer\.resblocks)", "a CLIP text encoder"),
    (r"^(decoder|encoder)\.(up|down|mid|conv_in)", "an autoencoder"),
    (r"^(model\.)?(language_model\.|layers\.0\.|embed_tokens)", "a language model"),
)
"""Patterns of names that no FLUX.1 transformer has, and the model that has them."""
OTHER_CHANNELS = {128: "FLUX.1-Depth or -Canny: in_channels is 128"}


@dataclass(frozen=True, slots=True)
class StoredPart:
    """One part of a pipeline inside the file. Names are those without the part's prefix."""

    full_names: Mapping[str, str]
    """With the prefix."""
    headers: Mapping[str, Header]
    """The plain tensors, and weights as they are once dequantised."""
    layers: Mapping[str, Layer]
    """Quantised weights."""
    cuts: Mapping[str, Cut]
    """The source of each tensor of diffusers' layout, by its name."""

    def is_narrow(self, name: str) -> bool:
        """True for a weight that is stored in a byte or less, and written as bfloat16."""
        return name in self.layers or self.headers[name].dtype in FLOAT8


@dataclass(frozen=True, slots=True)
class SingleFile:
    """A checkpoint in one file."""

    path: Path
    sizes: Sizes
    parts: Mapping[str, StoredPart]


def find_file(source: Path) -> Path:
    """The safetensors file that `source` is, or the only one in that folder."""
    if source.is_dir():
        found = sorted(file for end in ENDINGS for file in source.glob(f"*{end}"))
        others = [file for file in sorted(source.glob("*")) if file.suffix in OTHER_FORMATS]
        if not found and others:
            source = others[0]
        elif len(found) != 1:
            names = shown(", ".join(file.name for file in found))
            raise InvalidRequest(
                f"{source.name} holds {len(found)} safetensors files: give the one to convert"
                + (f" of {names}" if found else "")
            )
        else:
            source = found[0]
    if not source.is_file():
        raise InvalidRequest(f"there is no file {source.name}")
    try:
        with source.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InvalidRequest(f"{source.name} can't be read: {error.strerror}") from error
    if why := OTHER_FORMATS.get(".gguf" if start == b"GGUF" else source.suffix):
        raise InvalidRequest(f"{source.name}: {why}")
    return source


def read_single_file(source: Path) -> SingleFile:
    """The parts in a file. Raises `InvalidRequest` or `EngineFailed` naming a file that holds no
    FLUX.1 transformer, lacks a tensor, or holds one that has no place."""
    path = find_file(source)
    stored = read_file_headers(path)
    for name in stored:
        if ADAPTED.search(name):
            raise InvalidRequest(
                f"{path.name} holds tensors of an adapter such as {shown(name)}: merge it into its "
                "model first"
            )
    found = {part: _part(prefix, stored) for part, prefix in _prefixes(stored).items()}
    _check_model(path.name, found["transformer"])
    left = set(stored) - {name for names in found.values() for name in names.values()}
    if foreign := sorted(name for name in left if not IGNORED.search(name)):
        raise InvalidRequest(
            f"{path.name} holds {len(foreign)} tensors that have no place in a FLUX.1 checkpoint, "
            f"such as {shown(foreign[0])}"
        )
    plain = {part: _recognised(path.name, part, n, stored) for part, n in found.items()}
    sizes = Sizes.of(plain["transformer"].headers)
    _check_channels(path.name, sizes)
    parts = {}
    for part, quantised in plain.items():
        headers = quantised.headers
        if part == "transformer":
            cuts = transformer_cuts(sizes)
        else:
            cuts = vae_cuts(headers) if part == "vae" else {name: Cut(name) for name in headers}
        _check_names(path.name, part, headers, cuts)
        parts[part] = StoredPart(found[part], headers, quantised.layers, cuts)
    return SingleFile(path, sizes, parts)


def _prefixes(stored: Collection[str]) -> dict[str, str]:
    """The prefix of each part that is there; a transformer without one has an empty prefix."""
    found = {
        part: prefix
        for part, prefixes in PREFIXES.items()
        for prefix in prefixes
        if any(name.startswith(prefix) for name in stored)
    }
    return found if "transformer" in found else {"transformer": "", **found}


def _part(prefix: str, stored: Collection[str]) -> dict[str, str]:
    """Stored names by those without the prefix."""
    others = () if prefix else tuple(each for all_ in PREFIXES.values() for each in all_)
    return {
        name.removeprefix(prefix): name
        for name in stored
        if name.startswith(prefix)
        and not (others and name.startswith(others))
        and not IGNORED.search(name)
    }


def _recognised(
    file: str, part: str, names: Mapping[str, str], stored: Mapping[str, StoredTensor]
) -> Quantised:
    """The part's tensors as floats; raises for weights that can't be read as such."""
    mine = {name: stored[full] for name, full in names.items()}
    quantised = recognise(mine, None, lambda _: f"{file}: {part}")
    headers = {
        name: mine[name].header if name not in quantised.layers else header
        for name, header in quantised.headers.items()
    }
    named = [name for name in headers if not name.endswith(NORMS)]
    if found := find_quantised(named, headers):
        raise InvalidRequest(f"{file}: {part} is quantised ({found[0]}; tensor {found[1]})")
    for name, header in headers.items():
        if header.dtype not in FLOATS | FLOAT8:
            raise InvalidRequest(
                f"{file}: {part} is quantised ({header.dtype} numbers; tensor {name}), without "
                "scales that are known"
            )
        if quantised.layers and header.dtype in FLOAT8:
            raise InvalidRequest(f"{file}: {part} has scales, but none for its float8 {name}")
    return replace(quantised, headers=headers)


def _check_model(file: str, tensors: Collection[str]) -> None:
    for pattern, model in OTHER_MODELS:
        if name := next((name for name in tensors if re.search(pattern, name)), ""):
            raise InvalidRequest(
                f"{file} holds {model} (tensor {shown(name)}), not a FLUX.1 transformer"
            )
    if any(name.startswith(("transformer_blocks.", "x_embedder.")) for name in tensors):
        raise InvalidRequest(
            f"{file} has diffusers' names already: put it beside its config.json as "
            "diffusion_pytorch_model.safetensors and give that folder with --component transformer"
        )
    if "double_blocks.0.img_attn.qkv.weight" not in tensors:
        raise InvalidRequest(
            f"{file} holds no FLUX.1 transformer: it has {len(tensors)} tensors"
            + (f" such as {shown(min(tensors))}" if tensors else "")
        )


def _check_channels(file: str, sizes: Sizes) -> None:
    if sizes.is_even or sizes.is_fill:
        return
    known = OTHER_CHANNELS.get(
        sizes.in_channels, f"not text to image: in_channels is {sizes.in_channels}"
    )
    raise InvalidRequest(
        f"{file} is {known}, out_channels {sizes.out_channels}; text to image and FLUX.1-Fill are "
        "converted"
    )


def _check_names(
    file: str, part: str, tensors: Mapping[str, Header], cuts: Mapping[str, Cut]
) -> None:
    """Each stored tensor has its place, and each place a tensor with the rows it needs."""
    used = {cut.source for cut in cuts.values()}
    if missing := sorted(used - tensors.keys()):
        raise EngineFailed(f"{file}: {part} has no tensor {missing[0]}; fetch the file again")
    if foreign := sorted(tensors.keys() - used):
        raise InvalidRequest(
            f"{file}: {part} holds {len(foreign)} tensors that have no place in a FLUX.1 "
            f"checkpoint, such as {shown(foreign[0])}"
        )
    needed: dict[str, int] = {}
    for cut in cuts.values():
        for _, stop in cut.rows:
            needed[cut.source] = max(needed.get(cut.source, 0), stop)
    for name, rows in needed.items():
        if tensors[name].shape[:1] != (rows,):
            raise EngineFailed(
                f"{file}: tensor {name} has shape {list(tensors[name].shape)}, not {rows} rows"
            )
