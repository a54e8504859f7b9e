"""The parts of a checkpoint in transformers' layout that are the same for every chat model:
tokenizer, chat template, image processor and sampling defaults, read by transformers' own classes.

A template or tokenizer is tried before it is used. `folder` checks the files themselves, and
`decoder.weights` the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from predictors.chat.decoder.decoder import DecoderShape
from predictors.chat.decoder.rotary import mrope_positions
from predictors.chat.folder import (
    NAMED_TOKENS,
    SAME,
    check_generation,
    check_tokens,
    end_tokens,
    parts_of,
    read_preprocessor,
    read_tokens,
)
from predictors.chat.request import Message, Picture, Sampling
from predictors.chat.template_files import read_template
from predictors.chat.vision.pixels import PicturePreparation
from predictors.compute.checkpoint.folder import reading
from predictors.errors import EngineFailed, InvalidRequest

log = logging.getLogger(__name__)

CLASS_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
"""`size` of transformers' class, for a file without one."""
TEMPLATES = "chat_template.jinja, chat_template.json or tokenizer_config.json"
PICTURE = Picture(b"")
PROBES: dict[str, tuple[Message, ...]] = {
    "a turn of text": (Message("user", ("first words",)),),
    "a picture": (Message("user", (PICTURE, "first words")),),
    "two pictures": (Message("user", ("first words", PICTURE, PICTURE, "second words")),),
    "a history": (
        Message("system", ("rules here",)),
        Message("user", (PICTURE, "first words")),
        Message("assistant", ("an answer",)),
        Message("user", ("second words",)),
    ),
}
OPENING = "assistant"
SPELLED = "Two words, caf\u00e9, \u4e2d, 12.5\n"
CONTROL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
"""Tokens that templates write around texts and pictures."""


class HubCheckpoint:
    """The part of `ChatModel` that all models of transformers' layout share. Any thread.

    `config` is `read_config`'s, `vision` the shape of the vision tower. Raises `EngineFailed` for
    files that can't be read or don't fit together.
    """

    image_defaults: ClassVar[Mapping[str, Any]]
    """Settings of the image processor for a folder without its file: those of the release."""

    def __init__(
        self, checkpoint: Path, config: Mapping[str, Any], shape: DecoderShape, vision: object
    ) -> None:
        self.shape = shape
        self.compiled_for: Mapping[str, object] = {"text": shape, "vision": vision}
        tokens = read_tokens(checkpoint)
        check_tokens(config, tokens, shape.vocab)
        check_generation(checkpoint)
        with reading("generation_config.json"):
            self.sampling = sampling_defaults(checkpoint)
        self.image_token = tokens[NAMED_TOKENS["image_token_id"]]
        self.end_tokens = end_tokens(checkpoint, config, tokens)
        with reading("the tokenizer"):
            self._renderer: Any = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        self.tokenizer: Any = self._renderer.backend_tokenizer
        self.template = read_template(checkpoint)
        self.pictures = self._read_pictures(checkpoint, parts_of(config)["vision_config"])

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        rendered: str = self._renderer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        return rendered

    def _read_pictures(self, checkpoint: Path, vision: Mapping[str, Any]) -> PicturePreparation:
        file, settings = read_preprocessor(checkpoint)
        if settings is None:
            sizes = {ours: vision[theirs] for ours, theirs in SAME if theirs in vision}
            settings = {**self.image_defaults, **sizes}
            log.info("%s has no %s: pictures are prepared as %s", checkpoint.name, file, settings)
        with reading(file):
            # a copy: the class keeps the sizes of one checkpoint as the defaults of the next
            size = dict(settings.get("size") or CLASS_SIZE)
            return PicturePreparation(Qwen2VLImageProcessor.from_dict({**settings, "size": size}))

    def positions(
        self, num_tokens: int, pictures: Sequence[tuple[int, int, int]]
    ) -> tuple[Tensor, int]:
        return mrope_positions(num_tokens, pictures)


def sampling_defaults(checkpoint: Path) -> Sampling:
    """The sampling of `generation_config.json`; a value it does not name stays neutral, and without
    the file sampling is greedy, as in transformers."""
    try:
        found = GenerationConfig.from_pretrained(checkpoint, local_files_only=True)
    except OSError:  # no such file
        found = GenerationConfig()  # type: ignore[no-untyped-call]

    def given(name: str, neutral: float) -> float:
        value = getattr(found, name, None)
        return neutral if value is None else value

    return Sampling(
        temperature=float(given("temperature", 1.0)) if found.do_sample else 0.0,
        top_p=float(given("top_p", 1.0)),
        top_k=int(given("top_k", 0)),
        repetition_penalty=float(given("repetition_penalty", 1.0)),
    )


# -- template and tokenizer ------------------------------------------------------------------------
def check_template(
    template: Any,
    tokens_of: Callable[[Sequence[Message]], list[int]],
    tokenizer: Any,
    image_token: int,
) -> None:
    """Raise `EngineFailed` for a template that is missing, raises, loses a text or a picture, or
    does not open the answer, and for a tokenizer that reads its control tokens as text.

    `tokens_of` renders and tokenises messages as it does for requests.
    """
    if not template:
        raise EngineFailed(f"the checkpoint has no chat template ({TEMPLATES})")
    for written in CONTROL:
        count = len(tokenizer.encode(written, add_special_tokens=False).ids)
        if written in str(template) and count != 1:
            raise EngineFailed(f"the tokenizer reads {written} as {count} tokens, not as one")
    for name, messages in PROBES.items():
        try:
            with reading("the chat template"):  # a template raises anything
                tokens = tokens_of(messages)
        except (InvalidRequest, EngineFailed) as error:
            raise EngineFailed(f"the chat template ({TEMPLATES}) does not take {name}") from error
        parts = [part for message in messages for part in message.parts]
        pictures = sum(isinstance(part, Picture) for part in parts)
        if tokens.count(image_token) != pictures:
            raise EngineFailed(
                f"the chat template ({TEMPLATES}) makes {tokens.count(image_token)} image tokens "
                f"of {name}, which has {pictures} pictures"
            )
        rest: str = tokenizer.decode(tokens, skip_special_tokens=False)
        for part in parts:
            if isinstance(part, str):
                _, found, rest = rest.partition(part)
                if not found:
                    raise EngineFailed(f"the chat template ({TEMPLATES}) loses text of {name}")
        if OPENING not in rest:
            raise EngineFailed(f"the chat template ({TEMPLATES}) does not open an answer to {name}")


def check_spelling(bytes_of: Callable[[int], bytes], tokenizer: Any) -> None:
    """Raise `EngineFailed` for a tokenizer whose tokens don't spell their text: answers would be
    written in another alphabet."""
    tokens = tokenizer.encode(SPELLED, add_special_tokens=False).ids
    if b"".join(map(bytes_of, tokens)) != SPELLED.encode():
        raise EngineFailed("the tokenizer is no byte-level BPE: its tokens don't spell texts")
