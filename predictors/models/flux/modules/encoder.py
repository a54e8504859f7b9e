"""The encoder of FLUX.1's autoencoder, which turns a picture into the mean and variance of latents.

It is made of the decoder's blocks and operations, and like the decoder one forward serves every
device: `PLAIN` is the reference in torch, `encoder_fused.py` takes fewer passes over memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.models.flux.fit import PICTURE_CHANNELS, check_encoder
from predictors.models.flux.modules.decoder import (
    EPS,
    MAX_LEVEL,
    Attention,
    Operations,
    Plain,
    Resnet,
    Sum,
    attention_names,
    conv3,
    pair_names,
    resnet_names,
)

PADDING = (0, 1, 0, 1)
"""Left, right, top and bottom of a picture before its size is halved, as in diffusers."""
MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -30.0, 20.0
OLD_ATTENTION = "encoder.mid_block.attentions.0.proj_attn.weight"


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Sizes of an encoder, from its autoencoder's config."""

    latent_channels: int
    block_channels: tuple[int, ...]
    """Finest first."""
    resnets_per_block: int
    num_groups: int
    has_attention: bool
    has_conv: bool
    """True if a 1x1 convolution comes last (`use_quant_conv`)."""


def encoder_shape(config: Mapping[str, Any]) -> EncoderShape:
    """The shape in a diffusers `AutoencoderKL` config with its defaults filled in; raises
    `EngineFailed` for an encoder of another kind."""
    check_encoder(config)
    return EncoderShape(
        latent_channels=config["latent_channels"],
        block_channels=tuple(config["block_out_channels"]),
        resnets_per_block=config["layers_per_block"],
        num_groups=config["norm_num_groups"],
        has_attention=config["mid_block_add_attention"],
        has_conv=config["use_quant_conv"],
    )


class EncodingOperations(Operations, Protocol):
    """The operations of the encoder's blocks. No method changes an input."""

    def downsample(self, layer: nn.Conv2d, x: Tensor) -> Sum:
        """`layer` (3x3) at every second pixel of x both ways."""


class PlainEncoding(Plain):
    """The reference: each operation as torch has it."""

    def downsample(self, layer: nn.Conv2d, x: Tensor) -> Sum:
        return Sum(F.conv2d(F.pad(x, PADDING), layer.weight, layer.bias, stride=2))


PLAIN = PlainEncoding()


class EncoderBlock(nn.Module):
    """Resnets at one size, then halving it unless it is the coarsest."""

    def __init__(self, channels_in: int, channels: int, shape: EncoderShape, is_last: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels] * (shape.resnets_per_block - 1)
        self.resnets = nn.ModuleList(Resnet(width, channels, shape.num_groups) for width in widths)
        self.downsample = None if is_last else conv3(channels, channels)

    def forward(self, x: Sum, operations: EncodingOperations) -> Sum:
        """(n, channels_in, h, w) to (n, channels, h / 2, w / 2), or (n, channels, h, w) if last."""
        for resnet in self.resnets:
            x = resnet(x, operations)
        if self.downsample is None:
            return x
        return operations.downsample(self.downsample, operations.add_up(x))


class Encoder(nn.Module):
    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape
        outs, groups = shape.block_channels, shape.num_groups
        coarsest, moments = outs[-1], 2 * shape.latent_channels
        self.conv_in = conv3(PICTURE_CHANNELS, outs[0])
        self.blocks = nn.ModuleList(
            EncoderBlock(*widths, shape, is_last=i == len(outs) - 1)
            for i, widths in enumerate(zip((outs[0], *outs[:-1]), outs, strict=True))
        )
        self.middle = nn.ModuleList(
            [
                Resnet(coarsest, coarsest, groups),
                *([Attention(coarsest, groups)] if shape.has_attention else []),
                Resnet(coarsest, coarsest, groups),
            ]
        )
        self.norm = nn.GroupNorm(groups, coarsest, eps=EPS)
        self.conv_out = conv3(coarsest, moments)
        self.last = nn.Conv2d(moments, moments, 1) if shape.has_conv else None

    def forward(self, picture: Tensor, operations: EncodingOperations = PLAIN) -> Tensor:
        """Means and log variances (n, 2 * latent_channels, h / 8, w / 8) with four blocks, for a
        picture (n, 3, h, w) of -1 to 1."""
        x = operations.conv(self.conv_in, picture)
        for part in (*self.blocks, *self.middle):
            x = part(x, operations)
        moments = operations.add_up(operations.conv(self.conv_out, operations.norm(self.norm, x)))
        if self.last is not None:
            moments = operations.add_up(operations.conv(self.last, moments))
        return moments


def encode(
    encoder: Encoder, pixels: Tensor, keep: Tensor, operations: EncodingOperations = PLAIN
) -> Tensor:
    """The moments of `Encoder.forward`, in the weights' dtype, of RGB levels uint8 (h, w, 3).

    Where `keep` uint8 (h, w) is 0, the picture is left out: mid-grey, as FLUX.1-Fill reads it; it
    is 1 elsewhere.
    """
    picture = pixels.float() / MAX_LEVEL * 2 - 1
    picture = (picture * keep[..., None]).permute(2, 0, 1)[None]
    moments: Tensor = encoder(picture.to(encoder.conv_in.weight.dtype), operations)
    return moments


def sampled(moments: Tensor, noise: Tensor) -> Tensor:
    """Latents (1, latent_channels, h, w) of the Gaussian with `moments` (1, 2 * latent_channels, h,
    w) for standard normal `noise` of the latents' shape; the mean for zeros."""
    mean, log_variance = moments.chunk(2, dim=1)
    deviation = torch.exp(0.5 * log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE))
    return mean + deviation * noise.to(moments.dtype)


def encoder_names(
    shape: EncoderShape, *, has_old_attention: bool = False
) -> dict[str, tuple[str, ...]]:
    """As `decoder.decoder_names`. `has_old_attention`: the checkpoint holds `OLD_ATTENTION`."""
    names = pair_names("conv_in", "encoder.conv_in")
    widths = shape.block_channels
    for i, width in enumerate(widths):
        theirs = f"encoder.down_blocks.{i}"
        for j in range(shape.resnets_per_block):
            has_shortcut = j == 0 and i > 0 and widths[i - 1] != width
            names |= resnet_names(f"blocks.{i}.resnets.{j}", f"{theirs}.resnets.{j}", has_shortcut)
        if i < len(widths) - 1:
            names |= pair_names(f"blocks.{i}.downsample", f"{theirs}.downsamplers.0.conv")
    middle = "encoder.mid_block"
    last = 2 if shape.has_attention else 1
    for i, j in ((0, 0), (last, 1)):
        names |= resnet_names(f"middle.{i}", f"{middle}.resnets.{j}", has_shortcut=False)
    if shape.has_attention:
        names |= attention_names("middle.1", f"{middle}.attentions.0", has_old_attention)
    if shape.has_conv:
        names |= pair_names("last", "quant_conv")
    return (
        names
        | pair_names("norm", "encoder.conv_norm_out")
        | pair_names("conv_out", "encoder.conv_out")
    )
