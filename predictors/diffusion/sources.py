"""A caller's picture in an edit: its inputs on the host (`SourceInputs`), encoded on the device
(`EncodedSource`), and in each denoise step (`EditState`).

I counts latent patches of the drawn picture, R those of a reference picture, C a patch's channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from predictors.diffusion.request import SourcePicture


class Encoding(NamedTuple):
    """A picture that is to be encoded, on the host."""

    pixels: Tensor
    """uint8 (height, width, 3)."""
    keep: Tensor
    """uint8 (height, width): 0 where the encoder does not see the picture, else 1."""
    sample: Tensor
    """Standard normal noise for the sample of the posterior, as `DiffusionPasses.encoded_latents`
    takes it; zeros for its mean."""


@dataclass(frozen=True, slots=True)
class SourceInputs:
    """A `SourcePicture` as one model takes it, on the host; each part is None where it takes none.
    Masks and features are float32."""

    source: SourcePicture
    start: Encoding | None = None
    """Source of the first latents, and of the part that is kept."""
    mask: Tensor | None = None
    """(I, C): 1 is drawn again, 0 is kept as `start`."""
    beside: Encoding | None = None
    """Its latents are appended to the features of each patch that is drawn."""
    features: Tensor | None = None
    """(I, C'): further features of each patch, appended after `beside`."""
    reference: Encoding | None = None
    """Its patches are appended as tokens after the patches that are drawn."""

    @property
    def encodings(self) -> dict[str, Encoding]:
        """The pictures to encode, by field."""
        found = {"start": self.start, "beside": self.beside, "reference": self.reference}
        return {name: each for name, each in found.items() if each is not None}


@dataclass(frozen=True, slots=True)
class EncodedSource:
    """Encoded `SourceInputs`, on the device and in the model's dtype."""

    start: Tensor | None
    """(I, C)."""
    mask: Tensor | None
    """(I, C)."""
    beside: Tensor | None
    """(I, C'), the features that are appended to each patch."""
    reference: Tensor | None
    """(R, C)."""


@dataclass(frozen=True, slots=True)
class EditState:
    """The constant part of an edit's steps, on the device. Engine thread only."""

    source: EncodedSource
    noise: Tensor
    """(I, C) in the model's dtype."""
    levels: Tensor
    """(K + 1,) noise level before each call of the model and after the last, in the model's dtype.
    The first is below 1 only if there is a `source.start`."""

    def first_latents(self) -> Tensor:
        """(I, C): the picture with noise on it, or the noise alone."""
        return self.noise if self.source.start is None else self._noisy(0)

    def blended(self, latents: Tensor, index: int) -> Tensor:
        """`latents` (I, C) after `index` calls, with those of the kept part put back."""
        mask = self.source.mask
        if mask is None:
            return latents
        return (1 - mask) * self._noisy(index) + mask * latents

    def widened(self, latents: Tensor) -> Tensor:
        """The transformer's input for `latents` (I, C): more features, or more tokens."""
        if self.source.beside is not None:
            latents = torch.cat((latents, self.source.beside), dim=1)
        if self.source.reference is not None:
            latents = torch.cat((latents, self.source.reference))
        return latents

    def _noisy(self, index: int) -> Tensor:
        # FlowMatchEulerDiscreteScheduler.scale_noise, in its order and dtype
        start, level = self.source.start, self.levels[index]
        assert start is not None
        return level * self.noise + (1.0 - level) * start
