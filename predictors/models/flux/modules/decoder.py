"""The decoder of FLUX.1's autoencoder, which turns latents into a picture.

One forward for every device, written against a few operations: `PLAIN` is the reference in torch,
`decoder_fused.py` does the same on a GPU with fewer passes over memory. Pictures are (n, channels,
height, width), in whatever memory format the operations choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.models.flux.fit import PICTURE_CHANNELS, check_decoder

EPS = 1e-6
MAX_LEVEL = 255


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of a decoder, from its autoencoder's config."""

    latent_channels: int
    block_channels: tuple[int, ...]
    """Finest first, as in configs; the decoder goes through it backwards."""
    resnets_per_block: int
    num_groups: int
    has_attention: bool
    has_post_conv: bool
    """True if a 1x1 convolution comes first (`use_post_quant_conv`)."""

    @property
    def pixels_per_latent(self) -> int:
        """Pixels per side of one latent: 8 with four blocks."""
        return 1 << (len(self.block_channels) - 1)


def decoder_shape(config: Mapping[str, Any]) -> DecoderShape:
    """The shape in a diffusers `AutoencoderKL` config with its defaults filled in; raises
    `EngineFailed` for a decoder of another kind."""
    check_decoder(config)
    return DecoderShape(
        latent_channels=config["latent_channels"],
        block_channels=tuple(config["block_out_channels"]),
        resnets_per_block=config["layers_per_block"] + 1,
        num_groups=config["norm_num_groups"],
        has_attention=config["mid_block_add_attention"],
        has_post_conv=config["use_post_quant_conv"],
    )


class Sum(NamedTuple):
    """`picture + bias + residual`, not yet added up: the next operation that reads it does so."""

    picture: Tensor
    """(n, c, h, w); if `is_folded`, (n, 4c, h/2 + 1, w/2 + 1): see `decoder_fused.fold`."""
    bias: Tensor | None = None
    """(c,)."""
    residual: Tensor | None = None
    is_folded: bool = False


class Operations(Protocol):
    """The operations of the decoder's blocks. No method changes an input."""

    def add_up(self, x: Sum) -> Tensor:
        """The sum, added up."""

    def norm(self, norm: nn.GroupNorm, x: Sum) -> Tensor:
        """SiLU of the group norm of the sum."""

    def add_up_and_norm(
        self, norm: nn.GroupNorm, x: Sum, *, silu: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The sum added up, and its group norm with or without SiLU."""

    def conv(self, layer: nn.Conv2d, x: Tensor) -> Sum:
        """A convolution, the picture's size unchanged."""

    def upsample(self, layer: nn.Conv2d, x: Tensor) -> Sum:
        """`layer` (3x3) over x with each pixel doubled both ways."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Full attention of one head over (n, tokens, channels)."""

    def last(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        """As `conv`, added up, in `layer`'s dtype or a wider one."""


class Plain:
    """The reference: each operation as torch has it. torch.compile gets these too."""

    def add_up(self, x: Sum) -> Tensor:
        return x.picture if x.residual is None else x.residual + x.picture

    def norm(self, norm: nn.GroupNorm, x: Sum) -> Tensor:
        return F.silu(norm(self.add_up(x)))

    def add_up_and_norm(
        self, norm: nn.GroupNorm, x: Sum, *, silu: bool = True
    ) -> tuple[Tensor, Tensor]:
        total = self.add_up(x)
        normed: Tensor = norm(total)
        return total, F.silu(normed) if silu else normed

    def conv(self, layer: nn.Conv2d, x: Tensor) -> Sum:
        return Sum(layer(x))

    def upsample(self, layer: nn.Conv2d, x: Tensor) -> Sum:
        return Sum(layer(F.interpolate(x, scale_factor=2.0, mode="nearest")))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = query[:, None], key[:, None], value[:, None]
        return F.scaled_dot_product_attention(query, key, value)[:, 0]

    def last(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        picture: Tensor = layer(x)
        return picture


PLAIN = Plain()


class Resnet(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, channels_in, eps=EPS)
        self.conv1 = conv3(channels_in, channels_out)
        self.norm2 = nn.GroupNorm(num_groups, channels_out, eps=EPS)
        self.conv2 = conv3(channels_out, channels_out)
        is_same = channels_in == channels_out
        self.shortcut = None if is_same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Sum, operations: Operations) -> Sum:
        """(n, channels_in, h, w) to (n, channels_out, h, w)."""
        residual, normed = operations.add_up_and_norm(self.norm1, x)
        inner = operations.norm(self.norm2, operations.conv(self.conv1, normed))
        update = operations.conv(self.conv2, inner)
        if self.shortcut is None:
            return update._replace(residual=residual)
        shortcut = operations.conv(self.shortcut, residual)
        biases = [bias for bias in (update.bias, shortcut.bias) if bias is not None]
        bias = sum(biases[1:], start=biases[0]) if biases else None
        return Sum(update.picture, bias, shortcut.picture)


class Attention(nn.Module):
    """Full attention between all latents, with one head of all channels."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, eps=EPS)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Sum, operations: Operations) -> Sum:
        """(n, channels, h, w) to the same."""
        residual, normed = operations.add_up_and_norm(self.norm, x, silu=False)
        tokens = normed.flatten(2).transpose(1, 2)  # (n, h * w, channels)
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        mixed = self.out(operations.attend(query, key, value))
        return Sum(mixed.transpose(1, 2).unflatten(2, normed.shape[2:]), None, residual)


class Block(nn.Module):
    """Resnets at one size, then doubling it unless it is the finest."""

    def __init__(self, channels_in: int, channels: int, shape: DecoderShape, is_last: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels] * (shape.resnets_per_block - 1)
        self.resnets = nn.ModuleList(Resnet(width, channels, shape.num_groups) for width in widths)
        self.upsample = None if is_last else conv3(channels, channels)

    def forward(self, x: Sum, operations: Operations) -> Sum:
        """(n, channels_in, h, w) to (n, channels, 2h, 2w), or (n, channels, h, w) if last."""
        for resnet in self.resnets:
            x = resnet(x, operations)
        if self.upsample is None:
            return x
        return operations.upsample(self.upsample, operations.add_up(x))


class Decoder(nn.Module):
    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        *finer, coarsest = shape.block_channels
        latent, groups = shape.latent_channels, shape.num_groups
        self.post = nn.Conv2d(latent, latent, 1) if shape.has_post_conv else None
        self.conv_in = conv3(latent, coarsest)
        self.middle = nn.ModuleList(
            [
                Resnet(coarsest, coarsest, groups),
                *([Attention(coarsest, groups)] if shape.has_attention else []),
                Resnet(coarsest, coarsest, groups),
            ]
        )
        outs = [coarsest, *reversed(finer)]
        ins = [coarsest, *outs[:-1]]
        self.blocks = nn.ModuleList(
            Block(*widths, shape, is_last=i == len(outs) - 1)
            for i, widths in enumerate(zip(ins, outs, strict=True))
        )
        self.norm = nn.GroupNorm(groups, outs[-1], eps=EPS)
        self.conv_out = conv3(outs[-1], PICTURE_CHANNELS)

    @property
    def upsamples(self) -> list[nn.Conv2d]:
        """The convolutions over doubled pictures, coarsest first."""
        found = (block.upsample for block in self.blocks)
        return [layer for layer in found if isinstance(layer, nn.Conv2d)]

    def forward(self, latents: Tensor, operations: Operations = PLAIN) -> Tensor:
        """Picture (n, 3, h * pixels_per_latent, w * pixels_per_latent), about -1 to 1.

        latents (n, latent_channels, h, w), unscaled and unshifted.
        """
        if self.post is not None:
            latents = operations.add_up(operations.conv(self.post, latents))
        x = operations.conv(self.conv_in, latents)
        for part in (*self.middle, *self.blocks):
            x = part(x, operations)
        return operations.last(self.conv_out, operations.norm(self.norm, x))


def decode(decoder: Decoder, latents: Tensor, operations: Operations = PLAIN) -> Tensor:
    """Latents (1, latent_channels, h, w) to a picture's RGB levels in a row, and a verdict: uint8
    (8h * 8w * 3 + 1,) on the same device, the last of them 1 if the picture was finite before it
    was rounded, else 0.

    Rounded as diffusers does it in float32. In bfloat16 diffusers also halves and shifts in
    bfloat16, which is coarser than the 256 levels; here that is float32 too.
    """
    picture: Tensor = decoder(latents, operations)
    picture = picture[0].permute(1, 2, 0).float()  # (8h, 8w, 3)
    # both are NaN if anything is; unlike `isfinite` they write nothing of a picture's size
    is_finite = picture.amin().isfinite() & picture.amax().isfinite()
    levels = ((picture * 0.5 + 0.5).clamp(0, 1) * MAX_LEVEL).round().to(torch.uint8)
    return torch.cat((levels.contiguous().flatten(), is_finite.to(torch.uint8)[None]))


def decoder_names(
    shape: DecoderShape, *, has_old_attention: bool = False
) -> dict[str, tuple[str, ...]]:
    """Our parameter names to diffusers' (several are stacked along the output features).

    `has_old_attention`: the checkpoint has the names `query`, `key`, `value`, `proj_attn` of before
    diffusers 0.18, which it has if it holds `OLD_ATTENTION`.
    """
    names = pair_names("post", "post_quant_conv") if shape.has_post_conv else {}
    names |= pair_names("conv_in", "decoder.conv_in")
    resnets, attentions = "decoder.mid_block.resnets", "decoder.mid_block.attentions"
    names |= resnet_names("middle.0", f"{resnets}.0", has_shortcut=False)
    if shape.has_attention:
        names |= attention_names("middle.1", f"{attentions}.0", has_old_attention)
    last = 2 if shape.has_attention else 1
    names |= resnet_names(f"middle.{last}", f"{resnets}.1", has_shortcut=False)
    widths = shape.block_channels[::-1]
    for i, width in enumerate(widths):
        theirs = f"decoder.up_blocks.{i}"
        for j in range(shape.resnets_per_block):
            has_shortcut = j == 0 and i > 0 and widths[i - 1] != width
            names |= resnet_names(f"blocks.{i}.resnets.{j}", f"{theirs}.resnets.{j}", has_shortcut)
        if i < len(widths) - 1:
            names |= pair_names(f"blocks.{i}.upsample", f"{theirs}.upsamplers.0.conv")
    return (
        names
        | pair_names("norm", "decoder.conv_norm_out")
        | pair_names("conv_out", "decoder.conv_out")
    )


OLD_ATTENTION = "decoder.mid_block.attentions.0.proj_attn.weight"


def resnet_names(ours: str, theirs: str, has_shortcut: bool) -> dict[str, tuple[str, ...]]:
    """As `decoder_names`, of the resnet `ours`."""
    names: dict[str, tuple[str, ...]] = {}
    for part in ("norm1", "conv1", "norm2", "conv2"):
        names |= pair_names(f"{ours}.{part}", f"{theirs}.{part}")
    return (
        names | pair_names(f"{ours}.shortcut", f"{theirs}.conv_shortcut") if has_shortcut else names
    )


def attention_names(ours: str, theirs: str, is_old: bool) -> dict[str, tuple[str, ...]]:
    """As `decoder_names`, of the attention `ours`."""
    qkv = ("query", "key", "value") if is_old else ("to_q", "to_k", "to_v")
    return (
        pair_names(f"{ours}.norm", f"{theirs}.group_norm")
        | pair_names(f"{ours}.qkv", *(f"{theirs}.{name}" for name in qkv))
        | pair_names(f"{ours}.out", f"{theirs}.{'proj_attn' if is_old else 'to_out.0'}")
    )


def pair_names(ours: str, *theirs: str) -> dict[str, tuple[str, ...]]:
    """As `decoder_names`, of the weight and bias of the layer `ours`."""
    return {f"{ours}.{p}": tuple(f"{name}.{p}" for name in theirs) for p in ("weight", "bias")}


def conv3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the picture's size."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)
