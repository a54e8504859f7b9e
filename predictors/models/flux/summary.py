"""Describes a FLUX.1 folder, or refuses it, without torch, diffusers or transformers.

Everything that configs, tokenizer files and headers of weights can show is checked here, with the
functions that loading uses. Values are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from predictors.compute.checkpoint.folder import read_json, reading
from predictors.compute.checkpoint.summary import (
    CardFacts,
    FolderSummary,
    PartSummary,
    card_dtype,
    num_values,
    summarise_part,
)
from predictors.diffusion.checker_folder import find_checker
from predictors.diffusion.editing import loads_encoder
from predictors.diffusion.memory import LinearWeights, PictureWeights, picture_options
from predictors.diffusion.request import FILL, KONTEXT, TEXT
from predictors.models.flux.adapters.reading import describe_adapter
from predictors.models.flux.encoders import clip_shape, t5_shape
from predictors.models.flux.fit import check_decoder, check_encoder, check_fit, kind_of
from predictors.models.flux.folder import (
    CLASSES,
    WEIGHTED_PARTS,
    check_folder,
    is_quantised,
    part_folders,
)
from predictors.models.flux.prompt_tokenizers import read_clip_tokenizer, read_t5_tokenizer
from predictors.models.flux.stored import CheckedPart, check_part, stores_encoder
from predictors.models.flux.tensors import (
    Shapes,
    block_linears,
    tensors_of,
    transformer_tensors,
    with_defaults,
)
from predictors.models.flux.tokens import check_clip_tokenizer, check_t5_tokenizer
from predictors.protocol.content_credentials import make_signer
from predictors.settings import Settings

__all__ = ["describe_adapter", "summarise"]

ARCHITECTURES = {TEXT: "FluxPipeline", FILL: "FluxFillPipeline", KONTEXT: "FluxKontextPipeline"}
"""The pipeline of each kind."""


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
    find_checker(settings.flux)
    make_signer(settings.flux)
    folders = part_folders(folder, components)
    variant = settings.compute.weights_variant
    is_narrow = is_quantised(folders["transformer"], variant)
    raw = check_folder(folder, components)
    with reading("the configs of the parts"):
        configs = {part: with_defaults(part, raw[part]) for part in WEIGHTED_PARTS}
        check_decoder(configs["vae"])
        check_fit(*(configs[part] for part in WEIGHTED_PARTS))
        index = read_json(folder, "model_index.json", "model_index.json")
        kind = kind_of(index, configs["transformer"], configs["vae"], settings.flux.kind)
    encodes = _encodes(folders["vae"], configs["vae"], kind, settings)
    _check_tokenizers(folders, configs)
    parts = []
    for part in WEIGHTED_PARTS:
        is_native = is_narrow and part == "transformer"
        found = check_part(folders[part], part, variant, is_native=is_native, encodes=encodes)
        parts.append(_summary_of(part, found))
    weights = count_weights(configs, is_quantized=is_narrow, encodes=encodes)
    if kind == KONTEXT and encodes:
        weights = replace(weights, reference_pixels=configs["vae"]["sample_size"] ** 2)
    return FolderSummary(
        architecture=ARCHITECTURES[kind],
        task="flux",
        parts=tuple(parts),
        options=picture_options(weights, settings.flux, card_dtype(settings), card),
        memory_fraction=settings.flux.memory_fraction,
    )


def _encodes(folder: Path, vae: Mapping[str, Any], kind: str, settings: Settings) -> bool:
    """True if the encoder of the autoencoder in `folder` is loaded."""
    has_encoder = stores_encoder(folder, settings.compute.weights_variant)
    if has_encoder:
        check_encoder(vae)
    return loads_encoder(kind, settings.flux.edits, has_encoder=has_encoder)


def count_weights(
    configs: Mapping[str, Mapping[str, Any]], *, is_quantized: bool = False, encodes: bool = False
) -> PictureWeights:
    """Numbers of weights of a checkpoint with these configs, all defaults filled in, the
    autoencoder's encoder counted only with `encodes`."""
    shapes = {part: tensors_of(part, configs[part], {}, encodes=encodes) for part in WEIGHTED_PARTS}
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
    return PictureWeights(blocks, conditioning, others, width, is_quantized, _rank_row(transformer))


def _rank_row(transformer: Mapping[str, Any]) -> int:
    """Values of a rank row: what every linear of a step reads and writes."""
    shapes = block_linears(transformer)
    ends = ("x_embedder.weight", "proj_out.weight")
    every = transformer_tensors(transformer)
    return sum(sum(shape) for shape in (*shapes.values(), *(every[name] for name in ends)))


def _linear_weights(shapes: Mapping[str, tuple[int, ...]]) -> LinearWeights:
    return LinearWeights(sum(map(num_values, shapes.values())), sum(s[0] for s in shapes.values()))


def _summary_of(part: str, found: CheckedPart) -> PartSummary:
    parameters = sum(
        num_values(want.shape or ())
        for name, want in found.wanted.items()
        if not name.endswith("_scale")
    )
    return summarise_part(part, CLASSES[part][0], found.stored, parameters, found.quantised.method)


def _check_tokenizers(
    folders: Mapping[str, Path], configs: Mapping[str, Mapping[str, Any]]
) -> None:
    """As the start does."""
    clip, t5 = clip_shape(configs["text_encoder"]), t5_shape(configs["text_encoder_2"])
    tokenizer = read_clip_tokenizer(folders["tokenizer"])
    check_clip_tokenizer(tokenizer, clip.vocab, clip.positions, clip.end_token)
    check_t5_tokenizer(read_t5_tokenizer(folders["tokenizer_2"]), t5.vocab)
