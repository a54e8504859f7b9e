"""Likeness of two drawings of one prompt: PSNR, and a perceptual distance with random weights."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Pixels = NDArray[np.uint8]
"""(height, width, 3)."""

DISTANCE_METHOD = (
    "as LPIPS (Zhang et al. 2018), with random weights of one fixed seed in place of a trained "
    "network's: 3 convolutions with ReLU (5x5x32, 3x3x64 stride 2, 3x3x64 stride 2), features of "
    "unit length per pixel, squared differences averaged over pixels, layers and 3 scales; 0 for "
    "equal pictures, see distance_of for what a value means"
)
PEAK = 255.0
SCALES = 3
# output channels, kernel and stride of each random layer
LAYERS = ((32, 5, 1), (64, 3, 2), (64, 3, 2))
FEATURES_SEED = 20260
BATCH = 64
JPEG_QUALITY = 90


def psnr_db(one: Pixels, other: Pixels) -> float:
    """Peak signal to noise ratio in dB; infinite for equal pictures."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 10 * math.log10(PEAK**2 / error) if error else math.inf


class RandomFeatures:
    """LPIPS (Zhang et al. 2018) with random weights in place of a trained network's, so that
    nothing is downloaded: feature vectors of unit length per pixel, squared differences, averaged
    over pixels, layers and scales.

    0 for equal pictures; `anchors` gives a scale. The weights come from one seed.
    """

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator("cpu").manual_seed(FEATURES_SEED)
        self._device = device
        self._layers: list[tuple[Tensor, int]] = []
        channels = 3
        for width, kernel, stride in LAYERS:
            fan_in = channels * kernel * kernel
            drawn = torch.randn(width, channels, kernel, kernel, generator=generator)
            self._layers.append(((drawn * math.sqrt(2 / fan_in)).to(device), stride))
            channels = width

    def distances(self, ones: Sequence[Pixels], others: Sequence[Pixels]) -> NDArray[np.float64]:
        """(n,) distances of the pictures of equal index; all have one size."""
        found = []
        with torch.inference_mode():
            for start in range(0, len(ones), BATCH):
                part = slice(start, start + BATCH)
                found.append(self._distance(self._load(ones[part]), self._load(others[part])))
        return torch.cat(found).double().cpu().numpy()

    def _load(self, pictures: Sequence[Pixels]) -> Tensor:
        stacked = torch.from_numpy(np.stack(pictures)).to(self._device)
        return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        apart = []
        for _ in range(SCALES):
            pairs = zip(self._features(one), self._features(other), strict=True)
            apart += [(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]
            one, other = F.avg_pool2d(one, 2), F.avg_pool2d(other, 2)
        return torch.stack(apart).mean(0)

    def _features(self, picture: Tensor) -> list[Tensor]:
        found = []
        for weight, stride in self._layers:
            picture = F.relu(F.conv2d(picture, weight, stride=stride, padding="same" if stride == 1
                                      else weight.shape[-1] // 2))  # fmt: skip
            found.append(F.normalize(picture, dim=1, eps=1e-6))
        return found


Distances = Callable[[Sequence[Pixels], Sequence[Pixels]], NDArray[np.float64]]


def anchors(pictures: Sequence[Pixels], distances: Distances) -> Mapping[str, float]:
    """Mean distances of these pictures to familiar variants, as a scale."""
    return {
        f"JPEG of quality {JPEG_QUALITY}": float(distances(pictures, _jpegs(pictures)).mean()),
        "another prompt": float(distances(pictures, [*pictures[1:], pictures[0]]).mean()),
    }


def _jpegs(pictures: Sequence[Pixels]) -> list[Pixels]:
    read = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=JPEG_QUALITY)
        read.append(np.asarray(Image.open(file)))
    return read
