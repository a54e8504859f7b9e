"""Describes a FLUX.1 folder, or refuses it, without torch, diffusers or transformers.

Everything that configs, tokenizer files and headers of weights can show is checked here, with the
functions that loading uses. Values are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from predictors.compute.checkpoint.accounting import FLOATS, FP8, ExpectedTensor, check_tensors
from predictors.compute.checkpoint.folder import UNQUANTISED, reading
from predictors.compute.checkpoint.headers import StoredTensor, read_headers
from predictors.compute.checkpoint.summary import (
    CardFacts,
    FolderSummary,
    PartSummary,
    headers_of,
    num_values,
    summarise_part,
)
from predictors.diffusion.memory import LinearWeights, PictureWeights, picture_options
from predictors.models.flux.fit import check_decoder, check_fit
from predictors.models.flux.folder import (
    CLASSES,
    QUANTISE,
    check_folder,
    is_quantised,
    part_folders,
)
from predictors.models.flux.stored_tokenizer import StoredTokenizer
from predictors.models.flux.tensors import UNUSED, Shapes, block_linears, tensors_of, with_defaults
from predictors.models.flux.tokens import check_clip_tokenizer, check_t5_tokenizer
from predictors.settings import Settings

ARCHITECTURE = "FluxPipeline"
WEIGHTED = ("transformer", "text_encoder", "text_encoder_2", "vae")


def summarise(
    folder: Path,
    settings: Settings,
    card: CardFacts,
    components: Mapping[str, Path] = MappingProxyType({}),
) -> FolderSummary:
    """The content of a folder, and the memory of its tiers on `card`. `components` are folders of
    parts that are used instead of its own.

    Raises `ServingError` with the start's own message for a folder that is not served.
    """
    folders = part_folders(folder, components)
    is_narrow = is_quantised(folders["transformer"])
    raw = check_folder(folder, components)
    with reading("the configs of the parts"):
        configs = {part: with_defaults(part, raw[part]) for part in WEIGHTED}
        check_decoder(configs["vae"])
        check_fit(*(configs[part] for part in WEIGHTED))
    _check_tokenizers(folders, configs)
    parts, used = [], {}
    for part in WEIGHTED:
        stored = read_headers(folders[part], settings.compute.weights_variant)
        used[part] = check_component(part, configs[part], stored, is_narrow=is_narrow)
        parts.append(_summary_of(part, stored, used[part], is_narrow=is_narrow))
    weights = count_weights(configs, is_quantized=is_narrow)
    dtype = "bfloat16" if settings.compute.dtype == "auto" else settings.compute.dtype
    return FolderSummary(
        architecture=ARCHITECTURE,
        task="flux",
        parts=tuple(parts),
        options=picture_options(weights, settings.flux, dtype, card),
    )


def check_component(
    part: str,
    config: Mapping[str, Any],
    stored: Mapping[str, StoredTensor],
    *,
    is_narrow: bool = False,
) -> dict[str, ExpectedTensor]:
    """The tensors that a component is expected to store; raises `EngineFailed` unless it stores
    these. `is_narrow`: the transformer's blocks are in fp8, as `quantize` writes them."""
    headers = headers_of(stored)
    shapes = tensors_of(part, config, headers)
    wanted = {name: ExpectedTensor(shape, FLOATS) for name, shape in shapes.items()}
    if is_narrow and part == "transformer":
        for name, narrow in block_linears(config).items():
            wanted[name] = ExpectedTensor(narrow, FP8)
            wanted[f"{name}_scale"] = ExpectedTensor((narrow[0], 1))
    advice = f"{UNQUANTISED}; {QUANTISE}" if part == "transformer" else UNQUANTISED
    check_tensors(part, headers, wanted, UNUSED[part], advice=advice)
    return wanted


def count_weights(
    configs: Mapping[str, Mapping[str, Any]], *, is_quantized: bool = False
) -> PictureWeights:
    """Numbers of weights of a checkpoint with these configs, all defaults filled in."""
    shapes = {part: tensors_of(part, configs[part], {}) for part in WEIGHTED}
    total = sum(num_values(shape) for part in shapes.values() for shape in part.values())
    blocks = _linear_weights(block_linears(configs["transformer"]))
    narrowed: Shapes = {
        name: shape
        for name, shape in shapes["text_encoder_2"].items()
        if len(shape) == 2 and ".layer." in name and "relative_attention" not in name
    }
    narrowed |= {
        name: shape
        for name, shape in shapes["transformer"].items()
        if ".linear.weight" in name and "norm" in name
    }
    conditioning = _linear_weights(narrowed)
    others = total - blocks.values - conditioning.values
    transformer = configs["transformer"]
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    return PictureWeights(blocks, conditioning, others, width, is_quantized)


def _linear_weights(shapes: Mapping[str, tuple[int, ...]]) -> LinearWeights:
    return LinearWeights(sum(map(num_values, shapes.values())), sum(s[0] for s in shapes.values()))


def _summary_of(
    part: str,
    stored: Mapping[str, StoredTensor],
    used: Mapping[str, ExpectedTensor],
    *,
    is_narrow: bool,
) -> PartSummary:
    parameters = sum(
        num_values(want.shape or ()) for name, want in used.items() if not name.endswith("_scale")
    )
    method = "compressed-tensors FP8" if is_narrow and part == "transformer" else ""
    return summarise_part(part, CLASSES[part][0], stored, parameters, method)


def _check_tokenizers(
    folders: Mapping[str, Path], configs: Mapping[str, Mapping[str, Any]]
) -> None:
    """As the start does with the libraries' tokenizers."""
    with reading("the tokenizer in tokenizer"):
        clip = StoredTokenizer(folders["tokenizer"], end="<|endoftext|>", pad="<|endoftext|>")
    with reading("the tokenizer in tokenizer_2"):
        t5 = StoredTokenizer(folders["tokenizer_2"], end="</s>", pad="<pad>")
    encoder = configs["text_encoder"]
    check_clip_tokenizer(
        clip, encoder["vocab_size"], encoder["max_position_embeddings"], encoder["eos_token_id"]
    )
    if t5.has_vocabulary:
        check_t5_tokenizer(t5, configs["text_encoder_2"]["vocab_size"])
