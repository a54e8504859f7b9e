"""The encoder's operations on a GPU: those of the decoder, and halving a picture's size.

Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from predictors.models.flux.modules.decoder import Sum
from predictors.models.flux.modules.decoder_fused import Fused, to_channels_last
from predictors.models.flux.modules.encoder import PADDING, Encoder


class FusedEncoding(Fused):
    """Operations for one encoder, whose convolution weights become channels_last in place. Results
    differ from `PlainEncoding`'s by rounding only."""

    def __init__(self, encoder: Encoder) -> None:
        to_channels_last(encoder)
        self._folded, self._padded = {}, {}

    def downsample(self, layer: nn.Conv2d, x: Tensor) -> Sum:
        return Sum(F.conv2d(F.pad(x, PADDING), layer.weight, stride=2), layer.bias)
