"""The interface between the chat engine and a model: `models/<name>/model.py` implements it.

A `ChatModel` is a checkpoint of a paged decoder that reads pictures. Making one reads configs and
tokenizer files; `load` reads the weights. Everything else (scheduling, pages, sampling, graphs of
the decoder, caches, protocols) belongs to the engine and is the same for all models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from predictors.chat.adapters.changes import RowChanges
from predictors.chat.adapters.places import LinearPlaces
from predictors.chat.decoder.decoder import Decoder, DecoderShape
from predictors.chat.decoder.rotary import VisionSpan
from predictors.chat.grounding.boxes import Convention
from predictors.chat.request import Sampling
from predictors.chat.tensors import Shapes
from predictors.chat.vision.films import FilmPreparation
from predictors.chat.vision.pixels import PicturePreparation
from predictors.compute.device.placement import Placement

OPENS_ANSWER: Mapping[str, Any] = {"add_generation_prompt": True}


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """Features of one picture for the decoder, (1 + levels, merged, hidden) on the device.

    The first level stands in for the embeddings of the picture's tokens. The others are DeepStack's
    `levels`: number i is added to the stream after decoder layer i. Most models have none.
    """

    features: Tensor

    @property
    def embedding(self) -> Tensor:
        """(merged, hidden)."""
        return self.features[0]

    @property
    def deepstack(self) -> Tensor:
        """(levels, merged, hidden)."""
        return self.features[1:]

    def part(self, first: int, end: int) -> EncodedPicture:
        """Tokens `first` .. `end`, as a view."""
        return EncodedPicture(self.features[:, first:end])


class VisionEncoder(Protocol):
    """A model's vision encoder with its weights on the device. Engine thread only.

    Patches come group by group of merge x merge, as transformers' image processor orders them.
    Both forms return features (1 + levels, merged, hidden), see `EncodedPicture`, and ask the
    device for no value. `changes` are the picture's adapters.
    """

    patch: int
    """Side of a patch in pixels."""
    merge: int
    """merge x merge patches become one token."""
    patch_values: int
    """Numbers per patch of a picture. Of a film's two frames there are twice as many: those of the
    first frame, and what the second one's are more."""
    warm_grid: tuple[int, int]
    """Rows and columns of a picture that runs every kind of layer, in patches."""

    @property
    def places(self) -> LinearPlaces:
        """The layers of its linears."""

    def encode(
        self, patches: Tensor, grid: tuple[int, int], changes: RowChanges | None = None
    ) -> Tensor:
        """The plain form, for `patches` (patches, patch_values) of `grid` (rows, columns)."""

    def pack_grid(self, grid: tuple[int, int], num_patches: int) -> Tensor:
        """All that the packed form needs of a grid, for a pass of `num_patches` rows: int64 on the
        CPU, of a length that depends on `num_patches` alone."""

    def encode_packed(
        self, patches: Tensor, grid: Tensor, changes: RowChanges | None = None
    ) -> Tensor:
        """The fused form, for `patches` (num_patches, patch_values or more) and `pack_grid`'s
        integers on the device. It is captured per `num_patches`; rows beyond the picture may hold
        anything finite, and their features are dropped."""

    def choose_attention(self, num_patches: int) -> None:
        """Pick the fastest attention for pictures of up to `num_patches` on this GPU."""


class ChatModules(NamedTuple):
    decoder: Decoder
    vision: VisionEncoder


class ChatModel(Protocol):
    """One checkpoint. All attributes and methods but `load`: any thread."""

    shape: DecoderShape
    """The engine plans its KV cache and passes by it."""
    compiled_for: Mapping[str, object]
    """Shapes that compiled code depends on: part of the name of its cache."""
    image_token: int
    """Stands in a prompt for one merge x merge group of a picture's patches."""
    end_tokens: frozenset[int]
    """Each of them ends an answer."""
    sampling: Sampling
    """Defaults of `generation_config.json`."""
    tokenizer: Any
    """A `tokenizers.Tokenizer`, byte-level BPE."""
    template: str | None
    """The chat template, for the checks at the start."""
    opens_thinking: bool
    """Its prompts end with `<think>`: each answer begins with reasoning."""
    linears: Shapes
    """Shapes of the linears that adapters may change, from `adaptable_linears`."""
    pictures: PicturePreparation
    films: FilmPreparation | None
    """None for a checkpoint without films, see `no_films`."""
    no_films: str
    """Why there are none."""
    video_token: int | None
    """Stands in a prompt for one merge x merge group of the patches of two frames."""
    coordinates: Convention
    """The coordinates in which its answers give boxes."""

    def render(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] = OPENS_ANSWER
    ) -> str:
        """The chat template over `messages` as transformers takes them. `options` are those of its
        `apply_chat_template` and the template's own variables. Raises `jinja2.TemplateError`."""

    def positions(self, num_tokens: int, spans: Sequence[VisionSpan]) -> tuple[Tensor, int]:
        """Rotary positions (3, num_tokens) int64 of a prompt, and the one that comes next. `spans`
        are its pictures and films in order."""

    def load(self, placement: Placement) -> ChatModules:
        """Read the weights. Raises `EngineFailed` naming a tensor that is missing or of another
        shape, before memory is taken. Engine thread."""
