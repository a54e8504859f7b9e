"""What a FLUX checkpoint says about itself: configs and tokenizers, read through diffusers' and
transformers' own classes, so that defaults and old spellings are theirs. Knows no weights and no
device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTokenizer, T5TokenizerFast  # type: ignore[attr-defined]

from predictors.errors import EngineFailed
from predictors.flux.modules.decoder import DecoderShape, decoder_shape
from predictors.flux.modules.transformer import Shape

MAX_TEXT_TOKENS = 512  # what the model was trained on, whatever the tokenizer would allow
MAX_TEXT_TOKENS_SCHNELL = 256
FP8_FORMAT = "float-quantized"  # compressed-tensors' name for FP8 weights with scales beside them


@dataclass(frozen=True, slots=True)
class Facts:
    """What a checkpoint says about itself; read from configs, without weights."""

    folder: Path
    shape: Shape
    decoder: DecoderShape
    scheduler: Mapping[str, Any]
    """The whole config of its noise schedule, defaults filled in."""
    latent_channels: int
    patch_pixels: int
    """Pixels per side of one packed latent patch: 16 with FLUX's autoencoder."""
    sample_size: int
    """The autoencoder's native side in pixels."""
    latent_scale: float
    latent_shift: float
    is_quantized: bool
    """Whether the transformer's linears are stored in fp8."""
    max_text_tokens: int
    """Longest T5 sequence that may be asked for."""

    @property
    def default_text_tokens(self) -> int:
        """T5 tokens of a request that names none."""
        limit = MAX_TEXT_TOKENS if self.shape.has_guidance else MAX_TEXT_TOKENS_SCHNELL
        return min(self.max_text_tokens, limit)

    @property
    def default_steps(self) -> int:
        """Denoise steps of a request that names none: distilled checkpoints need four."""
        return 28 if self.shape.has_guidance else 4


@dataclass(frozen=True, slots=True)
class Tokenizers:
    """The two tokenizers of a checkpoint. Not thread-safe: they keep padding state."""

    clip: Any
    t5: Any


def read_facts(folder: Path) -> tuple[Facts, Tokenizers]:
    """Configs and tokenizers only: cheap, any thread."""
    # instances fill in the defaults of absent fields; meta costs nothing
    with torch.device("meta"):
        transformer, quantization = _transformer_config(folder / "transformer")
        vae = _from_config(AutoencoderKL, folder / "vae").config
    scheduler = _from_config(FlowMatchEulerDiscreteScheduler, folder / "scheduler").config
    tokenizers = Tokenizers(
        clip=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        t5=T5TokenizerFast.from_pretrained(folder / "tokenizer_2", local_files_only=True),
    )
    facts = Facts(
        folder=folder,
        shape=_shape(transformer),
        decoder=decoder_shape(vae),
        scheduler=dict(scheduler),
        latent_channels=transformer.in_channels // 4,
        patch_pixels=2 * decoder_shape(vae).pixels_per_latent,
        sample_size=vae.sample_size,
        latent_scale=vae.scaling_factor,
        latent_shift=vae.shift_factor or 0.0,
        is_quantized=quantization is not None,
        max_text_tokens=min(tokenizers.t5.model_max_length, MAX_TEXT_TOKENS),
    )
    return facts, tokenizers


def _transformer_config(folder: Path) -> tuple[Any, Any]:
    """Config with defaults, and what it says of quantisation; raises `EngineFailed` for another
    scheme than per-token activations and per-feature weights in e4m3."""
    config = FluxTransformer2DModel.load_config(folder, local_files_only=True)
    quantization = config.pop("quantization_config", None)
    if quantization is not None and quantization.get("format") != FP8_FORMAT:
        raise EngineFailed(
            f"the transformer is quantised as {quantization.get('quant_method')} "
            f"{quantization.get('format')}; only compressed-tensors {FP8_FORMAT} is read"
        )
    kind: Any = FluxTransformer2DModel
    return kind.from_config(config).config, quantization


def _from_config(kind: Any, folder: Path) -> Any:
    return kind.from_config(kind.load_config(folder, local_files_only=True))


def _shape(config: Any) -> Shape:
    return Shape(
        num_double=config.num_layers,
        num_single=config.num_single_layers,
        num_heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels or config.in_channels,
        text_dim=config.joint_attention_dim,
        pooled_dim=config.pooled_projection_dim,
        has_guidance=config.guidance_embeds,
        rotary_axes=tuple(config.axes_dims_rope),
    )
