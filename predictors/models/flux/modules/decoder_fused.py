"""The decoder's operations on a GPU, with few passes over memory.

cuDNN's convolutions are fastest on channels_last pictures and add a bias in a pass of its own. So
pictures are channels_last from the first convolution to the last, and bias and residual wait
(`Sum`) until the next norm reads the picture anyway. Doubling the size and a 3x3 convolution are
one 2x2 convolution on the small picture. Nothing is read back, nothing depends on values and no
state is kept between calls, so the whole decode can be captured in a CUDA graph.
Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.models.flux.modules import group_norm, wide_attention
from predictors.models.flux.modules.decoder import Decoder, Sum

# cuDNN's fast kernels need a multiple of 8 output channels; zeros cost less than another kernel
CHANNEL_STEP = 8
# rows of `FOLD[phase]`: which of a 3-tap filter's taps fall on which of two small pixels
FOLD = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


class Fused:
    """Operations for one decoder.

    The decoder's convolution weights become channels_last in place; folded and padded copies are
    held here (19 MB for FLUX in bfloat16). Results differ from `Plain`'s by rounding only.
    """

    def __init__(self, decoder: Decoder, *, folds_upsample: bool = True) -> None:
        to_channels_last(decoder)
        layers = decoder.upsamples if folds_upsample else ()
        self._folded: dict[nn.Module, Tensor] = {layer: fold(layer.weight) for layer in layers}
        self._padded: dict[nn.Module, Tensor] = {
            decoder.conv_out: pad_outputs(decoder.conv_out.weight)
        }

    def add_up(self, x: Sum) -> Tensor:
        return group_norm.add_up(x)

    def norm(self, norm: nn.GroupNorm, x: Sum) -> Tensor:
        return group_norm.group_norm(x, norm, silu=True, keep=False)[1]

    def add_up_and_norm(
        self, norm: nn.GroupNorm, x: Sum, *, silu: bool = True
    ) -> tuple[Tensor, Tensor]:
        keep = x.bias is not None
        return group_norm.group_norm(x, norm, silu=silu, keep=keep)

    def conv(self, layer: nn.Conv2d, x: Tensor) -> Sum:
        x = x.contiguous(memory_format=torch.channels_last)  # only latents are not so already
        return Sum(F.conv2d(x, layer.weight, padding=layer.padding), layer.bias)

    def upsample(self, layer: nn.Conv2d, x: Tensor) -> Sum:
        folded = self._folded.get(layer)
        if folded is None:
            return self.conv(layer, F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return Sum(F.conv2d(x, folded, padding=1), layer.bias, is_folded=True)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return wide_attention.attend(query, key, value)

    def last(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        picture = F.conv2d(x, self._padded[layer], padding=layer.padding)
        assert layer.bias is not None
        return picture[:, : layer.out_channels].float() + layer.bias.float()[:, None, None]


def to_channels_last(module: nn.Module) -> None:
    """Change the memory format of all convolution weights, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


def fold(weight: Tensor) -> Tensor:
    """A 3x3 filter (o, i, 3, 3) over doubled pixels as 2x2 filters over single ones: (4o, i, 2, 2).

    Each pixel has four outputs, and several of the nine taps of each fall on one pixel, so their
    weights are summed: 16 products instead of 36. Phase (dy, dx) is filter
    (2 * dy + dx) * o onwards; over the picture padded by 1 its value for output pixel
    (2y + dy, 2x + dx) is at (y + dy, x + dx). Summed in float64, rounded once.
    """
    taps = torch.tensor(FOLD, dtype=torch.float64, device=weight.device)
    folded = torch.einsum("yrk,xcl,oikl->yxoirc", taps, taps, weight.detach().double())
    folded = folded.flatten(0, 2).to(weight.dtype)
    return folded.contiguous(memory_format=torch.channels_last)


def pad_outputs(weight: Tensor) -> Tensor:
    """Filters (o, i, 3, 3) with zeros up to a whole number of `CHANNEL_STEP` outputs."""
    missing = -weight.shape[0] % CHANNEL_STEP
    padded = F.pad(weight.detach(), (0, 0, 0, 0, 0, 0, 0, missing))
    return padded.contiguous(memory_format=torch.channels_last)
