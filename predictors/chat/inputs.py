"""A request -> work for the engine: tokens, positions, patches. Runs in pool threads; knows no
device and no wire.

Template, tokenizer and image preparation are transformers' own, so that prompts and patches are
exactly what the checkpoint was trained on; where a device is to prepare pictures, they are only
decoded here, for the size that transformers' own arithmetic says. Rotary positions are computed
here, per request, and never kept in a module.
"""

from __future__ import annotations

import itertools
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from predictors import metrics
from predictors.chat.decoder.rotary import mrope_positions
from predictors.chat.pixels import Recipe, recipe_of
from predictors.chat.request import ChatRequest, Message, Picture, Sampling
from predictors.chat.template import check_template
from predictors.compute.caches import ByteBoundedCache
from predictors.compute.checkpoint.folder import reading
from predictors.errors import InvalidRequest
from predictors.models.qwen2_5_vl.vision.grid import VisionShape
from predictors.protocol.images import Pixels, decode_pixels
from predictors.settings import ImageLimits, QwenVLSettings

DEFAULT_MAX_PIXELS = (
    28 * 28 * 1280
)  # transformers' class default; the hub's files allow twelve times that
PATCH_CACHE_BYTES = (
    64 * 2**20
)  # prepared pictures kept, so that `n` answers or a repeated picture share one


@dataclass(frozen=True, slots=True)
class Patches:
    """One prepared picture: `values` (patches, channels * patch * patch) fp32; `grid` in patches
    (rows, columns).

    `key` names the picture and how it was prepared; `pixels` is its area as it came. With a
    `recipe` only decoding is done: `values` are its levels (height, width, channels) uint8, and the
    device makes patches of them.
    """

    key: bytes
    grid: tuple[int, int]
    pixels: int
    values: Tensor = field(repr=False)
    recipe: Recipe | None = None


_Prepared = tuple[tuple[int, int], Tensor, Recipe | None]
"""Grid, values and recipe of `Patches`."""


@dataclass(frozen=True, slots=True)
class PlacedPicture:
    """A picture whose `length` tokens start at index `start` of the prompt."""

    start: int
    length: int
    patches: Patches


@dataclass(frozen=True, slots=True)
class ChatWork:
    """A request ready for the engine. `tokens` (n,) int64, `positions` (3, n) int64, both on the
    CPU.

    `next_position` is the rotary position of the first token of the answer.
    """

    tokens: Tensor = field(repr=False)
    positions: Tensor = field(repr=False)
    next_position: int
    pictures: tuple[PlacedPicture, ...]
    sampling: Sampling
    seed: int
    max_tokens: int
    stop: tuple[str, ...]
    ignore_eos: bool

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, pictures included."""
        return len(self.tokens)


class Inputs:
    """Prepares requests for one checkpoint. Thread-safe. `on_device`: pictures are only decoded
    here, and the device makes patches of them; else they are exactly transformers'."""

    def __init__(
        self,
        model: str,
        checkpoint: Path,
        vision: VisionShape,
        image_token: int,
        settings: QwenVLSettings,
        limits: ImageLimits,
        max_context: int,
        on_device: bool = False,
    ) -> None:
        with reading("the tokenizer or the preprocessor of pictures"):
            parts: Any = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                checkpoint, local_files_only=True
            )
        self.tokenizer: Any = parts.tokenizer.backend_tokenizer
        self._templated = parts
        self._images = parts.image_processor
        self._recipe = recipe_of(parts.image_processor) if on_device else None
        self._vision = vision
        self._image_token = image_token
        self._model = model
        self._limits = limits
        self._max_context = max_context
        self._default_max_tokens = settings.default_max_tokens
        with reading("preprocessor_config.json"):
            size = parts.image_processor.size
            least, most = int(size["shortest_edge"]), int(size["longest_edge"])
        self.min_pixels = settings.min_pixels or least
        self.max_pixels = settings.max_pixels or min(most, DEFAULT_MAX_PIXELS)
        self._break = f"\ue000{secrets.token_hex(8)}\ue001"
        control = [
            t.content for t in self.tokenizer.get_added_tokens_decoder().values() if t.special
        ]
        self._control = re.compile("|".join(map(re.escape, control)) or r"(?!)")
        self._longest_token = max(map(len, self.tokenizer.get_vocab()))
        self._lock = threading.Lock()
        self._kept: ByteBoundedCache[bytes, Patches] = ByteBoundedCache(
            PATCH_CACHE_BYTES, lambda patches: patches.values.nbytes
        )

    def check_template(self) -> None:
        """Raise `EngineFailed` if the checkpoint's chat template can't say what callers say."""
        template = self._templated.chat_template
        check_template(template, self.tokens_of, self.tokenizer, self._image_token)

    def prepare(self, request: ChatRequest) -> ChatWork:
        """The work for one request, its pictures decoded on this thread; raises `InvalidRequest`
        for what can't be read or can't fit."""
        return self.assemble(request, [self.prepare_picture(x) for x in request.pictures])

    def assemble(self, request: ChatRequest, patches: Sequence[Patches]) -> ChatWork:
        """The work for one request whose pictures are prepared."""
        tokens, starts = self._place(self.tokens_of(request.messages), patches)
        lengths = [self._merged(p) for p in patches]
        placed = [PlacedPicture(*x) for x in zip(starts, lengths, patches, strict=True)]
        merge = self._vision.merge
        grids = [
            (s, p.grid[0] // merge, p.grid[1] // merge)
            for s, p in zip(starts, patches, strict=True)
        ]
        positions, next_position = mrope_positions(len(tokens), grids)
        return ChatWork(
            tokens=torch.tensor(tokens, dtype=torch.int64),
            positions=positions,
            next_position=next_position,
            pictures=tuple(placed),
            sampling=request.sampling,
            seed=request.seed,
            max_tokens=self._max_tokens(len(tokens), request.max_tokens),
            stop=request.stop,
            ignore_eos=request.ignore_eos,
        )

    # -- pictures --------------------------------------------------------------------------------
    def prepare_picture(self, picture: Picture) -> Patches:
        """Decode and check one picture, and cut it, on this thread."""
        digest = picture.digest()
        kept = self.kept(digest)
        if kept is None:
            kept = self.cut(digest, decode_pixels(picture.raw, self._limits))
        return kept

    def kept(self, digest: bytes) -> Patches | None:
        """The prepared picture from the cache, or None."""
        with self._lock:
            kept = self._kept.get(digest)
        if kept is not None:
            metrics.input_image_pixels.labels(self._model).observe(kept.pixels)
        return kept

    def cut(self, digest: bytes, pixels: Pixels) -> Patches:
        """Resize, normalise and cut a decoded picture, exactly as transformers does, unless the
        device will. The memory of `pixels` is closed."""
        mapped = np.frombuffer(pixels.memory.map(), np.uint8)
        pixels.memory.close()
        picture = torch.from_numpy(mapped.reshape(pixels.height, pixels.width, 3))
        try:
            grid, values, recipe = self._left_whole(picture) or self._cut(picture)
        except ValueError as error:  # sides too different, or no pixel left after resizing
            shape = f"{pixels.width}x{pixels.height}"
            raise InvalidRequest(
                f"a picture of {shape} pixels can't be cut into patches"
            ) from error
        key = digest + repr((grid, self.min_pixels, self.max_pixels, recipe)).encode()
        made = Patches(key, grid, pixels.width * pixels.height, values, recipe)
        with self._lock:
            self._kept.put(digest, made)
        metrics.input_image_pixels.labels(self._model).observe(made.pixels)
        return made

    def _left_whole(self, picture: Tensor) -> _Prepared | None:
        """The picture as it is, or None where the device can't prepare it."""
        recipe = self._recipe
        if recipe is None:
            return None
        sides = (picture.shape[0], picture.shape[1])
        multiple = recipe.patch * recipe.merge
        height, width = smart_resize(*sides, multiple, self.min_pixels, self.max_pixels)
        grid = (height // recipe.patch, width // recipe.patch)
        if not recipe.can_shrink(sides, grid):
            return None
        # pinned here, since copying megabytes would hold the engine's thread up; a copy in any
        # case, as what is mapped belongs to the kernel's account of shared memory
        values = picture.pin_memory() if torch.cuda.is_available() else picture.clone()
        return grid, values, recipe

    def _cut(self, picture: Tensor) -> _Prepared:
        """The patches that transformers makes of (height, width, 3) uint8."""
        size = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
        made = self._images(
            images=[picture.permute(2, 0, 1)],
            size=size,
            input_data_format="channels_first",
            return_tensors="pt",
        )
        _, rows, columns = made["image_grid_thw"][0].tolist()
        v = self._vision
        pairs = made["pixel_values"].view(-1, v.channels, v.temporal_patch, v.patch**2)
        # both frames of a still picture are the same: one is enough
        return (rows, columns), pairs[:, :, 0].flatten(1).contiguous(), None

    def _merged(self, patches: Patches) -> int:
        rows, columns = patches.grid
        return rows * columns // self._vision.merge**2

    # -- text ------------------------------------------------------------------------------------
    def tokens_of(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of the whole conversation and the opening of the answer; one image token per
        picture.

        A control token that stands in a caller's text is read as plain text: nobody can end a turn
        or claim a picture by writing its token.
        """
        self._check_length(messages)
        turns = [{"role": m.role, "content": self._content(m)} for m in messages]
        try:
            rendered: str = self._templated.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            rendered.encode()  # half a surrogate pair is no text
        except TemplateError as error:
            message = "the model's chat template does not take these messages"
            raise InvalidRequest(message, param="messages") from error
        except UnicodeEncodeError as error:
            raise InvalidRequest("the text holds half a surrogate pair") from error
        pieces = rendered.split(self._break)
        # the tokenizer itself, not its wrapper: the wrapper sets state and is not thread-safe. As a
        # batch, since `encode` holds the interpreter's lock: three seconds for four megabytes
        encoded = self.tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        return [token for piece in encoded for token in piece.ids]

    def _check_length(self, messages: Sequence[Message]) -> None:
        """Refuse at once what would take seconds to tokenise only to be refused then.

        No token is longer than the longest, and composing characters leaves at least a third of
        a text.
        """
        texts = (part for m in messages for part in m.parts if isinstance(part, str))
        least = sum(map(len, texts)) // (3 * self._longest_token)
        if least >= self._max_context:
            raise InvalidRequest(
                f"the prompt has at least {least} tokens; the context is {self._max_context}"
            )

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        """The parts as templates take them. Texts side by side become one before they are looked
        at, so that no control token comes out of two halves.
        """
        parts: list[dict[str, str]] = []
        for is_text, run in itertools.groupby(message.parts, lambda part: isinstance(part, str)):
            if is_text:
                parts.append({"type": "text", "text": self._plain("".join(map(str, run)))})
            else:
                parts += [{"type": "image"} for _ in run]
        is_plain = len(parts) == 1 and parts[0]["type"] == "text"
        return parts[0]["text"] if is_plain else parts

    def _plain(self, text: str) -> str:
        def broken(found: re.Match[str]) -> str:
            return found[0][0] + self._break + found[0][1:]

        return self._control.sub(broken, text)

    def _place(self, tokens: list[int], patches: Sequence[Patches]) -> tuple[list[int], list[int]]:
        """Each picture's token repeated for all its patches, and where each begins."""
        if tokens.count(self._image_token) != len(patches):
            raise InvalidRequest(
                "the chat template has no place for these pictures", param="messages"
            )
        out: list[int] = []
        starts: list[int] = []
        for token in tokens:
            if token == self._image_token:
                starts.append(len(out))
                out += [token] * self._merged(patches[len(starts) - 1])
            else:
                out.append(token)
        return out, starts

    def _max_tokens(self, num_prompt: int, wanted: int | None) -> int:
        room = self._max_context - num_prompt
        if room < 1:
            raise InvalidRequest(
                f"the prompt has {num_prompt} tokens; with at least one of answer that is more "
                f"than the context of {self._max_context}"
            )
        if wanted is not None and wanted > room:
            raise InvalidRequest(
                f"{num_prompt} tokens of prompt and max_tokens {wanted} are more than the context "
                f"of {self._max_context}",
                param="max_tokens",
            )
        return min(self._default_max_tokens, room) if wanted is None else wanted
