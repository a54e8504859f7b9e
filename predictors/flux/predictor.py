"""The FLUX room's door: one checkpoint behind every protocol. Knows how codec, inputs and engine
belong together; the request path itself is `base`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from predictors.base import Answer, BasePredictor
from predictors.compute.device import announce, place
from predictors.errors import InvalidRequest
from predictors.flux.codec import INPUT_TYPES, OUTPUT_TYPES, FluxCodec
from predictors.flux.engine import FluxEngine
from predictors.flux.inputs import FluxWork, Preparer
from predictors.flux.request import ImageRequest, ImageResult, Offer
from predictors.flux.weights import Facts, read_facts
from predictors.protocol.call import Call
from predictors.protocol.v2 import V2Request, V2Response
from predictors.settings import FluxSettings, InvalidSetting, Settings


class FluxPredictor(BasePredictor[ImageRequest, FluxWork, ImageResult]):
    """Text to image. Construction reads configs and tokenizers; weights come in `load`."""

    room = "flux"

    def __init__(self, name: str, checkpoint: Path, settings: Settings) -> None:
        facts, tokenizers = read_facts(checkpoint)
        placement = place(settings.compute)
        offer = make_offer(facts, settings.flux)
        self._preparer = Preparer(facts, tokenizers, placement.dtype)
        self._codec = FluxCodec(name, offer, placement.precision, settings.flux.png_level)
        engine = FluxEngine(name, facts, offer, self._preparer, settings.flux, placement)
        super().__init__(name, engine, settings)
        announce(name, placement)

    def decode_v2(self, request: V2Request) -> list[ImageRequest]:
        """One request per row."""
        return self._codec.decode_v2(request)

    def prepare(self, request: ImageRequest) -> FluxWork:
        """Tokens, noise and noise schedule. Pool thread."""
        return self._preparer.prepare(request)

    def encode_v2(
        self, request: V2Request, answers: list[Answer[ImageRequest, ImageResult]]
    ) -> V2Response:
        """Files and seeds. Pool thread."""
        return self._codec.encode_v2(request, answers)

    async def images(self, body: Mapping[str, Any], call: Call) -> dict[str, Any]:
        """The reply to OpenAI's `images/generations`."""
        requests = self._codec.decode_images(body)
        answers = await self.run(requests, call)
        return await self.off_loop(self._codec.encode_images, answers)

    def get_input_types(self) -> list[dict[str, Any]]:
        """Names, datatypes and shapes of the V2 inputs."""
        return [dict(tensor) for tensor in INPUT_TYPES]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Names, datatypes and shapes of the V2 outputs."""
        return [dict(tensor) for tensor in OUTPUT_TYPES]


def make_offer(facts: Facts, settings: FluxSettings) -> Offer:
    """What this checkpoint draws under these settings; raises `InvalidSetting` naming the knob."""
    if settings.unpromised not in {"serve", "refuse"}:
        raise InvalidSetting(
            f"flux.unpromised must be serve or refuse, not {settings.unpromised!r}"
        )
    if not 0 <= settings.png_level <= 9:
        raise InvalidSetting(f"flux.png_level must be from 0 to 9, not {settings.png_level}")
    if settings.slots < 1:
        raise InvalidSetting(f"flux.slots must be at least 1, not {settings.slots}")
    width, height = default = _default_size(facts, settings)
    tokens = settings.max_sequence_length or facts.default_text_tokens
    if not 1 <= tokens <= facts.max_text_tokens:
        raise InvalidSetting(
            f"flux.max_sequence_length must be from 1 to {facts.max_text_tokens}, not {tokens}"
        )
    steps = settings.default_steps or facts.default_steps
    if not 1 <= steps <= settings.max_steps:
        raise InvalidSetting(f"flux.default_steps is {steps}, flux.max_steps {settings.max_steps}")
    offer = Offer(
        default_width=width,
        default_height=height,
        default_steps=steps,
        default_sequence_length=tokens,
        max_sequence_length=facts.max_text_tokens,
        side_multiple=facts.patch_pixels,
        min_side=settings.min_side,
        max_side=settings.max_side,
        max_pixels=settings.max_pixels,
        max_steps=settings.max_steps,
        sizes=tuple(dict.fromkeys(_sizes("flux.sizes", settings.sizes) or [default])),
        refuses_unpromised=settings.unpromised == "refuse",
    )
    _check_sizes(offer)
    return offer


def _default_size(facts: Facts, settings: FluxSettings) -> tuple[int, int]:
    native = (facts.sample_size, facts.sample_size)
    asked = _sizes("flux.default_size", settings.default_size)
    promised = _sizes("flux.sizes", settings.sizes)
    if asked:
        return asked[0]
    # a default that is always refused would be none
    is_lost = settings.unpromised == "refuse" and promised and native not in promised
    return promised[0] if is_lost else native


def _check_sizes(offer: Offer) -> None:
    for width, height in ((offer.default_width, offer.default_height), *offer.sizes):
        try:
            offer.check_sides(width, height)
        except InvalidRequest as error:
            message = f"size {width}x{height} can't be promised: {error.message}"
            raise InvalidSetting(message) from error
    default = (offer.default_width, offer.default_height)
    if offer.refuses_unpromised and default not in offer.sizes:
        raise InvalidSetting(f"flux.default_size {default} would be refused: not in flux.sizes")


def _sizes(knob: str, text: str) -> Sequence[tuple[int, int]]:
    sizes = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        width, _, height = part.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise InvalidSetting(f"{knob} must be WIDTHxHEIGHT, comma-separated, not {part!r}")
        sizes.append((int(width), int(height)))
    return sizes
