"""The FLUX room's door: one checkpoint behind every protocol. Knows how codec, inputs and engine
belong together; the request path itself is `base`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predictors import metrics
from predictors.base import Answer, BasePredictor
from predictors.compute.device.placement import announce, place
from predictors.diffusion.codec import INPUT_TYPES, OUTPUT_TYPES, FluxCodec
from predictors.diffusion.engine import FluxEngine
from predictors.diffusion.inputs import FluxWork, Preparer
from predictors.diffusion.limits import make_offer
from predictors.diffusion.metrics import SERIES
from predictors.diffusion.request import ImageRequest, ImageResult
from predictors.models.flux.config import read_facts
from predictors.observe import tracing
from predictors.protocol.call import Call
from predictors.protocol.openai.images_body import ImagesBody
from predictors.protocol.v2.values import V2Request, V2Response
from predictors.settings import Settings
from predictors.workers.pool import Workers


class FluxPredictor(BasePredictor[ImageRequest, FluxWork, ImageResult]):
    """Text to image. Construction reads configs and tokenizers; weights come in `load`."""

    room = "flux"
    series = SERIES

    def __init__(
        self, name: str, checkpoint: Path, settings: Settings, workers: Workers | None = None
    ) -> None:
        facts, tokenizers = read_facts(checkpoint)
        placement = place(settings.compute)
        offer = make_offer(facts, settings.flux, placement.device)
        self._preparer = Preparer(facts, tokenizers, placement.dtype, offer.tiers)
        self._codec = FluxCodec(name, offer, placement.precision, settings.flux.png_level)
        engine = FluxEngine(name, facts, offer, self._preparer, settings.flux, placement)
        super().__init__(name, engine, settings, workers)
        announce(name, placement)
        for tier in offer.tiers.loaded:
            metrics.tier_info.labels(name, tier, self._codec.precision_of(tier)).set(1)

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

    def facts(self, work: FluxWork, last: ImageResult | None) -> Mapping[str, int | str]:
        """The picture's size and what it costs."""
        wish = work.request
        facts: dict[str, int | str] = {
            "width": wish.width,
            "height": wish.height,
            "steps": wish.num_inference_steps,
            "tier": wish.tier,
        }
        return facts if last is None else facts | {"prompt_tokens": last.num_prompt_tokens}

    def prompt(self, request: ImageRequest) -> str:
        """The prompt without its negative."""
        return request.prompt

    async def images(self, body: ImagesBody, call: Call) -> dict[str, Any]:
        """The reply to OpenAI's `images/generations`."""
        with tracing.stage(call.trace, "parse"):
            requests = self._codec.decode_images(body)
        answers = await self.run(requests, call)
        with tracing.stage(call.trace, "encode"):
            return await self.off_loop(self._codec.encode_images, answers)

    def describe(self) -> dict[str, object]:
        """With the precision that callers read, by tier."""
        tiers = self._codec.offer.tiers.loaded
        precision = {tier: self._codec.precision_of(tier) for tier in tiers}
        return {**super().describe(), "precision": precision}

    def get_input_types(self) -> list[dict[str, Any]]:
        """Names, datatypes and shapes of the V2 inputs."""
        return [dict(tensor) for tensor in INPUT_TYPES]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Names, datatypes and shapes of the V2 outputs."""
        return [dict(tensor) for tensor in OUTPUT_TYPES]
