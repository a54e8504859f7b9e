"""The parts of a checkpoint in transformers' layout that are the same for every chat model:
tokenizer, chat template, image processor and sampling defaults. What is unusual is left to
transformers' own classes, which are imported then.

A template or tokenizer is tried before it is used. `folder` checks the files themselves, and
`decoder.weights` the weights.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from predictors.chat.chat_template import ChatTemplate
from predictors.chat.chat_tokenizer import read_chat_tokenizer
from predictors.chat.decoder.decoder import DecoderShape
from predictors.chat.decoder.rotary import VisionSpan, mrope_positions
from predictors.chat.folder import (
    SAME,
    check_generation,
    parts_of,
    read_film_settings,
    read_preprocessor,
)
from predictors.chat.model import OPENS_ANSWER
from predictors.chat.request import Sampling
from predictors.chat.template_checks import THINKING, VIDEO_TOKEN, opens_thinking
from predictors.chat.template_files import read_template
from predictors.chat.token_files import NAMED_TOKENS, check_tokens, end_tokens, read_tokens
from predictors.chat.vision.films import FRAMES, FilmPreparation
from predictors.chat.vision.pixels import PicturePreparation
from predictors.chat.vision.settings import FILM_DEFAULTS, PROCESSOR_DEFAULTS, usual_settings
from predictors.compute.checkpoint.folder import read_if_there, reading
from predictors.errors import EngineFailed, ServingError

log = logging.getLogger(__name__)

CLASS_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
"""`size` of transformers' class, for a file without one."""
IMAGE_PROCESSOR = "Qwen2VLImageProcessor"


class HubCheckpoint(ABC):
    """The part of `ChatModel` that all models of transformers' layout share. Any thread.

    `config` is `read_config`'s, `vision` the shape of the vision tower. Raises `EngineFailed` for
    files that can't be read or don't fit together.
    """

    film_processor: ClassVar[str]
    """The name of transformers' class for the model's films."""
    film_defaults: ClassVar[Mapping[str, Any]]
    """Settings that this class has where a folder gives none."""
    films_rename_edges: ClassVar[bool]
    """True if this class knows `min_pixels` and `max_pixels`."""
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
        found = read_chat_tokenizer(checkpoint)
        self.tokenizer: Any = found.tokenizer
        self._special = found.special
        self.template = read_template(checkpoint)
        self.opens_thinking = bool(self.template) and _opens_thinking(self.render)
        if self.opens_thinking:
            log.warning("%s: %s", checkpoint.name, THINKING)
        self.pictures = self._read_pictures(checkpoint, parts_of(config)["vision_config"])
        self.video_token = tokens.get(VIDEO_TOKEN)
        self.films, self.no_films = self._read_films(checkpoint, parts_of(config)["vision_config"])
        for name in ("patch", "merge"):  # where a config leaves them to its class
            ours, theirs = getattr(self.pictures, name), getattr(vision, name)
            if ours != theirs:
                raise EngineFailed(
                    f"preprocessor_config.json: {name}_size is {ours}, but that of the vision "
                    f"tower {theirs}"
                )

    @property
    def template(self) -> str | None:
        """The chat template by which conversations are rendered."""
        return self._renderer.text

    @template.setter
    def template(self, text: str | None) -> None:
        self._renderer = ChatTemplate(text, self._special)

    def render(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] = OPENS_ANSWER
    ) -> str:
        return self._renderer.render(messages, **options)

    def _read_pictures(self, checkpoint: Path, vision: Mapping[str, Any]) -> PicturePreparation:
        file, found = read_preprocessor(checkpoint)
        sizes = {ours: vision[theirs] for ours, theirs in SAME if theirs in vision}
        settings = {**self.image_defaults, **sizes}
        if found is None:
            log.info("%s has no %s: pictures are prepared as %s", checkpoint.name, file, settings)
        else:  # what it leaves out is the release's, but for the bounds: those are the class's
            del settings["size"]
            if filled := {name: settings[name] for name in settings if name not in found}:
                log.info("%s of %s lacks settings of pictures: %s", file, checkpoint.name, filled)
            settings |= found
        with reading(file):
            # a copy: the class keeps the sizes of one checkpoint as the defaults of the next
            settings["size"] = dict(settings.get("size") or CLASS_SIZE)
            usual = usual_settings(settings, PROCESSOR_DEFAULTS)
            return PicturePreparation(usual or _processor(IMAGE_PROCESSOR, settings))

    @abstractmethod
    def make_films(self, videos: Any) -> FilmPreparation:
        """The preparation of films by this processor. Each model has its own."""

    def _read_films(
        self, checkpoint: Path, vision: Mapping[str, Any]
    ) -> tuple[FilmPreparation | None, str]:
        """The preparation of films, or None and why there is none. A folder is not refused for
        that."""
        kind = self.film_processor
        try:
            file, found = read_film_settings(checkpoint, kind, vision)
            sizes = {ours: vision[theirs] for ours, theirs in SAME if theirs in vision}
            settings = {**sizes, **(found or {})}
            defaults = {**FILM_DEFAULTS, **self.film_defaults}
            settings["size"] = dict(settings.get("size") or defaults["size"])  # as for pictures
            with reading(file):
                usual = usual_settings(settings, defaults, renames_edges=self.films_rename_edges)
                films = self.make_films(usual or _processor(kind, settings))
        except EngineFailed as error:
            log.warning("%s is served without films: %s", checkpoint.name, error.message)
            return None, f"this checkpoint is served without films: {error.message}"
        ours, theirs = (films.patch, films.merge), (self.pictures.patch, self.pictures.merge)
        if self.video_token is None or films.temporal != FRAMES or ours != theirs:
            return None, "this checkpoint is not made for films"
        return films, ""

    def positions(self, num_tokens: int, spans: Sequence[VisionSpan]) -> tuple[Tensor, int]:
        return mrope_positions(num_tokens, spans)


def _opens_thinking(render: Callable[[Sequence[Mapping[str, Any]]], str]) -> bool:
    """False as well for a template that does not take a turn of text, which is refused later."""
    try:
        with reading("the chat template"):
            return opens_thinking(render([{"role": "user", "content": "first words"}]))
    except ServingError:
        return False


def _processor(kind: str, settings: Mapping[str, Any]) -> Any:
    import transformers  # takes seconds, and few folders need it

    return getattr(transformers, kind).from_dict(settings)


def sampling_defaults(checkpoint: Path) -> Sampling:
    """The sampling of `generation_config.json`; a value it does not name stays neutral, and without
    the file sampling is greedy, as in transformers."""
    found = read_if_there(checkpoint, "generation_config.json")

    def given(name: str, neutral: float) -> float:
        value = found.get(name)
        return neutral if value is None else value

    return Sampling(
        temperature=float(given("temperature", 1.0)) if found.get("do_sample") else 0.0,
        top_p=float(given("top_p", 1.0)),
        top_k=int(given("top_k", 0)),
        repetition_penalty=float(given("repetition_penalty", 1.0)),
        min_p=float(given("min_p", 0.0)),
    )
