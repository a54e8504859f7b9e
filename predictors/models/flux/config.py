"""Reads the configs and tokenizers of a FLUX.1 checkpoint, without weights.

What configs leave out is filled in from `tensors.DEFAULTS`, since importing the libraries for it
takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from predictors.compute.checkpoint.folder import read_json, reading
from predictors.diffusion.request import FILL
from predictors.diffusion.sampling import Schedule
from predictors.models.flux.encoders import ClipShape, T5Shape, clip_shape, t5_shape
from predictors.models.flux.fit import check_fit, kind_of
from predictors.models.flux.folder import (
    WEIGHTED_PARTS,
    check_folder,
    is_quantised,
    part_folders,
)
from predictors.models.flux.modules.decoder import DecoderShape, decoder_shape
from predictors.models.flux.modules.encoder import EncoderShape, encoder_shape
from predictors.models.flux.modules.transformer import Shape
from predictors.models.flux.prompt_tokenizers import (
    PromptTokenizer,
    read_clip_tokenizer,
    read_t5_tokenizer,
)
from predictors.models.flux.stored import stores_encoder
from predictors.models.flux.tensors import with_defaults
from predictors.models.flux.tokens import check_clip_tokenizer, check_t5_tokenizer

MAX_TEXT_TOKENS = 512  # the model was trained on no more, whatever the tokenizer allows
MAX_TEXT_TOKENS_SCHNELL = 256


@dataclass(frozen=True, slots=True)
class FluxConfig:
    """Sizes and defaults of one checkpoint; implements `CheckpointConfig`."""

    folders: Mapping[str, Path]
    """The folder of each part."""
    variant: str
    """The wanted variant of the weights files, or an empty string."""
    shape: Shape
    clip: ClipShape
    t5: T5Shape
    decoder: DecoderShape
    schedule: Schedule
    latent_channels: int
    patch_pixels: int
    """Pixels per side of one latent patch: 16, since 2 x 2 latents are packed to a patch."""
    sample_size: int
    """The autoencoder's native side in pixels."""
    latent_scale: float
    latent_shift: float
    is_quantized: bool
    """True if the transformer's linears are stored in fp8."""
    max_text_tokens: int
    """The longest T5 sequence of a request."""
    kind: str
    """`TEXT`, `FILL` or `KONTEXT`."""
    encoder: EncoderShape | None
    """None if its weights are not stored."""

    @property
    def has_encoder(self) -> bool:
        return self.encoder is not None

    @property
    def default_text_tokens(self) -> int:
        limit = MAX_TEXT_TOKENS if self.shape.has_guidance else MAX_TEXT_TOKENS_SCHNELL
        return min(self.max_text_tokens, limit)

    @property
    def default_steps(self) -> int:
        """Denoise steps of a request that gives none: schnell was distilled to four."""
        if self.kind == FILL:
            return 50
        return 28 if self.shape.has_guidance else 4

    @property
    def default_guidance(self) -> float:
        """That of diffusers' pipeline for text to image, FLUX.1-Fill or -Kontext."""
        return 30.0 if self.kind == FILL else 3.5


@dataclass(frozen=True, slots=True)
class Tokenizers:
    """The two tokenizers of a checkpoint. Not thread-safe."""

    clip: PromptTokenizer
    t5: PromptTokenizer


def read_checkpoint(
    folder: Path,
    replaced: Mapping[str, Path] = MappingProxyType({}),
    variant: str = "",
    kind: str = "auto",
) -> tuple[FluxConfig, Tokenizers]:
    """Configs and tokenizers of a folder in diffusers layout. Any thread.

    `replaced` are folders of parts that are used instead of those in `folder`; `variant` is the
    wanted one of the weights files, `kind` the setting `flux.kind`.
    Raises `EngineFailed` for a folder that would not be drawn as diffusers draws it.
    """
    folders = part_folders(folder, replaced)
    is_narrow = is_quantised(folders["transformer"], variant)
    raw = check_folder(folder, replaced)
    tokenizers = Tokenizers(
        clip=read_clip_tokenizer(folders["tokenizer"]),
        t5=read_t5_tokenizer(folders["tokenizer_2"]),
    )
    with reading("the configs of the parts"):
        parts = {part: with_defaults(part, raw[part]) for part in WEIGHTED_PARTS}
        transformer, vae = parts["transformer"], parts["vae"]
        check_fit(*(parts[part] for part in WEIGHTED_PARTS))
        clip, t5 = clip_shape(parts["text_encoder"]), t5_shape(parts["text_encoder_2"])
        shape, decoder = _shape(transformer), decoder_shape(vae)
    index = read_json(folder, "model_index.json", "model_index.json")
    check_clip_tokenizer(tokenizers.clip, clip.vocab, clip.positions, clip.end_token)
    check_t5_tokenizer(tokenizers.t5, t5.vocab)
    config = FluxConfig(
        folders=folders,
        variant=variant,
        shape=shape,
        clip=clip,
        t5=t5,
        decoder=decoder,
        schedule=Schedule.of(raw["scheduler"]),
        latent_channels=vae["latent_channels"],
        patch_pixels=2 * decoder.pixels_per_latent,
        sample_size=vae["sample_size"],
        latent_scale=vae["scaling_factor"],
        latent_shift=vae["shift_factor"] or 0.0,
        is_quantized=is_narrow,
        max_text_tokens=min(tokenizers.t5.model_max_length, MAX_TEXT_TOKENS),
        kind=kind_of(index, transformer, vae, kind),
        encoder=encoder_shape(vae) if stores_encoder(folders["vae"], variant) else None,
    )
    return config, tokenizers


def _shape(config: Mapping[str, Any]) -> Shape:
    return Shape(
        num_double=config["num_layers"],
        num_single=config["num_single_layers"],
        num_heads=config["num_attention_heads"],
        head_dim=config["attention_head_dim"],
        in_channels=config["in_channels"],
        out_channels=config["out_channels"] or config["in_channels"],
        text_dim=config["joint_attention_dim"],
        pooled_dim=config["pooled_projection_dim"],
        has_guidance=config["guidance_embeds"],
        rotary_axes=tuple(config["axes_dims_rope"]),
    )
