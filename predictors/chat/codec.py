"""Translates V2 and OpenAI chat bodies to requests, and answers to responses.

Defaults come from the checkpoint's `generation_config.json` on every protocol; a request overrides
them field by field. Row i of a request (V2 row, or choice of `n`) uses seed + i.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from predictors.chat.adapters.mix import UNADAPTED, AdapterMix
from predictors.chat.body_messages import message_of
from predictors.chat.chunks import (
    ChatAnswer,
    Completion,
    used_adapters,
)
from predictors.chat.film import Film, FilmSize
from predictors.chat.film_fields import film_options
from predictors.chat.format_parameters import read_answer_format
from predictors.chat.logprobs import LogprobWriters
from predictors.chat.parameter_ranges import check_parameter, read_frame_parameters, read_stops
from predictors.chat.pixel_bounds import PixelBounds, PixelLimits
from predictors.chat.request import ChatRequest, Message, Picture, Sampling
from predictors.chat.streaming import check_streamed_chat
from predictors.chat.token_controls import (
    template_parameters,
    token_parameters,
    v2_writer,
    with_options,
)
from predictors.chat.tools.tool_parameters import (
    check_calls_answer,
    read_tool_parameters,
)
from predictors.chat.v2_outputs import LOGPROBS, output_tensors
from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.call import ANY_ADAPTER, AdapterAccess
from predictors.protocol.openai.chat_body import ChatBody
from predictors.protocol.openai.coordinates import asked_coordinates
from predictors.protocol.openai.lora_fields import NamedScales, read_loras_text
from predictors.protocol.openai.pixel_fields import DETAILS
from predictors.protocol.openai.reasoning_fields import always_reasons
from predictors.protocol.openai.template_fields import AS_USUAL
from predictors.protocol.openai.token_fields import TOKEN_FIELDS, UNASKED
from predictors.protocol.seeds import drawn_seed, row_seeds
from predictors.protocol.v2.values import (
    InputTensors,
    Parameters,
    V2Request,
    V2Response,
    count_rows,
)

SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "min_p",
)  # fmt: skip
OPTION_NAMES = {*TOKEN_FIELDS, "chat_template_kwargs"}
IGNORED = ("binary_data_output", "timeout", "priority")  # read before the codec

INPUT_TYPES = [
    {"name": "prompt", "datatype": "BYTES", "shape": [-1]},
    {"name": "image", "datatype": "BYTES", "shape": [-1]},
    {"name": "video", "datatype": "BYTES", "shape": [-1]},
]


def _no_adapters(named: NamedScales) -> AdapterMix:
    if named:
        raise InvalidRequest("this model takes no adapters", param="loras")
    return AdapterMix.of(())


@dataclass(frozen=True, slots=True)
class ChatCodec:
    """Translates for one model, whose `precision` responses name. Any thread."""

    defaults: Sampling
    precision: str
    max_images: int
    pixels: PixelLimits
    model: str = ""
    mix: Callable[[NamedScales], AdapterMix] = _no_adapters
    """The adapters of these names with their scales. Raises `InvalidRequest`."""
    logprobs: LogprobWriters | None = None
    variables: frozenset[str] = frozenset()
    """Variables of the chat template that a caller may set."""
    opens_thinking: bool = False
    """As in `ChatModel`."""
    max_films: int = 0
    no_films: str = "this model reads none"
    """Why films are refused; empty if they are taken."""

    # -- V2 --------------------------------------------------------------------------------------
    def decode_v2(self, request: V2Request) -> list[ChatRequest]:
        """One chat per row. Its user message has the picture and the film, if there are any, and
        then the prompt."""
        inputs = InputTensors(request.inputs)
        prompts, images = inputs.read_text("prompt"), inputs.read_files("image")
        videos = inputs.read_files("video")
        inputs.reject_unread()
        if prompts is None:
            raise InvalidRequest("input 'prompt' is required", param="prompt")
        count_rows(prompt=prompts, image=images, video=videos)
        if videos and self.no_films:
            raise InvalidRequest(f"films are not taken: {self.no_films}", param="video")
        parameters = Parameters(request.parameters, ignored=IGNORED)
        bounds = self._read_bounds(parameters)
        frames = read_frame_parameters(parameters)
        options = film_options(frames, bounds)
        common, seed = self._decode_parameters(parameters, request.adapters)
        if common.coordinates is None and "boxes" in request.outputs:
            problem = "output 'boxes' needs the parameter coordinates: original or normalized_1000"
            raise InvalidRequest(problem, param="boxes")
        system = request.parameters.get("system_prompt")
        opening = () if system is None else (Message("system", (str(system),)),)
        rows = []
        for i, prompt in enumerate(prompts):
            parts: list[str | Picture | Film] = [prompt]
            if videos is not None:
                parts.insert(0, Film((videos[i],), options=options, row=i))
            if images is not None:
                parts.insert(0, _picture(images[i], i, bounds))
            rows.append(replace(common, messages=(*opening, Message("user", tuple(parts)))))
        check_streamed_chat(request, len(rows))
        check_calls_answer(request, common.tools)
        if LOGPROBS in request.outputs and common.controls.logprobs is None:
            message = f"output {LOGPROBS!r} needs the parameter {LOGPROBS}, which must be true"
            raise InvalidRequest(message, param=LOGPROBS)
        return with_row_seeds(rows, seed)

    def _read_bounds(self, parameters: Parameters) -> PixelBounds | None:
        least, most = parameters.read_int("min_pixels"), parameters.read_int("max_pixels")
        detail = parameters.read_text("detail")
        check_parameter("min_pixels", least)
        check_parameter("max_pixels", most)
        if detail is not None and detail not in DETAILS:
            choices = ", ".join(DETAILS)
            raise InvalidRequest(f"detail must be one of {choices}", param="detail")
        return self.pixels.choose(least, most or self.pixels.of_detail(detail))

    def _decode_parameters(
        self, parameters: Parameters, adapters: AdapterAccess
    ) -> tuple[ChatRequest, int | None]:
        """The fields that all rows share, and the first row's seed."""
        given: dict[str, Any] = {
            name: (parameters.read_int if name == "top_k" else parameters.read_float)(name)
            for name in SAMPLING_FIELDS
        }
        seed, max_tokens = parameters.read_int("seed"), parameters.read_int("max_tokens")
        tokens, template = UNASKED, AS_USUAL
        if parameters.has_any(OPTION_NAMES):
            tokens, template = token_parameters(parameters), template_parameters(parameters)
        stop = read_stops(parameters.read_text("stop"))
        parameters.read_text("system_prompt")
        loras = parameters.read_text("loras")
        answer_format = read_answer_format(parameters)
        tools = read_tool_parameters(parameters)
        coordinates = asked_coordinates(parameters.read_text("coordinates"))
        parameters.read_flag("stream")
        parameters.reject_unread()
        for name, value in {"max_tokens": max_tokens, **given}.items():
            check_parameter(name, value)
        sampling = self._sampling(given)
        mix = self._mix(None if loras is None else read_loras_text(loras), adapters)
        common = ChatRequest(
            messages=(),
            sampling=sampling,
            seed=0,
            max_tokens=max_tokens,
            stop=stop,
            adapters=mix,
            answer_format=answer_format,
            coordinates=coordinates,
        )
        if tokens is not UNASKED or template is not AS_USUAL:
            common = with_options(common, tokens, template, self)
        return (common if tools is None else replace(common, tools=tools)), seed

    def _mix(self, asked: NamedScales | None, adapters: AdapterAccess) -> AdapterMix:
        """The adapter in the model's name and those `asked` for. Raises `Forbidden` for one that
        the caller's key may not use, and `InvalidRequest`."""
        if not asked and adapters is ANY_ADAPTER:
            return UNADAPTED
        return self.mix(adapters.named(self.model, asked))

    def _sampling(self, given: Mapping[str, Any]) -> Sampling:
        chosen = {name: value for name, value in given.items() if value is not None}
        if chosen.get("top_k", 0) < 0:
            chosen["top_k"] = 0  # -1 is off, as in vLLM
        return replace(self.defaults, **chosen)

    def encode_v2(self, request: V2Request, answers: Sequence[ChatAnswer]) -> V2Response:
        """The response: texts, counts and picture sizes of all rows, times of the slowest row, and
        the first row's seed."""
        completions = [Completion.of(answer) for answer in answers]
        writer = v2_writer(request, answers[0].request, self.logprobs)
        tensors = output_tensors(completions, writer)
        parameters: dict[str, str | int | bool] = {
            "precision": self.precision,
            "queue_ms": max(answer.queue_ms for answer in answers),
            "compute_ms": max(answer.compute_ms for answer in answers),
            "seed": answers[0].request.seed,
        }
        films = [size for c in completions for size in c.pictures if isinstance(size, FilmSize)]
        if films:  # one per row
            parameters["videos"] = json.dumps([asdict(size) for size in films])
        if used := used_adapters(answers[0].request):
            parameters["loras"] = json.dumps(used)
        return V2Response(request.model, request.id, tensors, parameters)

    # -- OpenAI chat -----------------------------------------------------------------------------
    def decode_chat(
        self, body: ChatBody, adapters: AdapterAccess = ANY_ADAPTER
    ) -> list[ChatRequest]:
        """One request per choice. Raises `InvalidRequest`."""
        if body.less_reasoning and self.opens_thinking:
            raise always_reasons(body.less_reasoning)
        given = {name: getattr(body, name) for name in SAMPLING_FIELDS}
        seed = drawn_seed(body.n) if body.seed is None else body.seed
        request = ChatRequest(
            messages=self._messages(body),
            sampling=self._sampling(given),
            seed=seed,  # the first row's, which is often the only one
            max_tokens=body.max_tokens,
            stop=body.stop,
            ignore_eos=body.ignore_eos,
            adapters=self._mix(body.loras, adapters),
            answer_format=body.answer_format,
            tools=body.tools,
            coordinates=asked_coordinates(body.coordinates),
        )
        if body.tokens is not UNASKED or body.template is not AS_USUAL:
            request = with_options(request, body.tokens, body.template, self)
        return with_row_seeds([request] * body.n, seed)

    def _messages(self, body: ChatBody) -> tuple[Message, ...]:
        common = self.pixels.choose(body.pixels.min_pixels, body.pixels.max_pixels)
        messages = tuple(message_of(turn, body, self.pixels, common) for turn in body.messages)
        media = [part for m in messages for part in m.parts if not isinstance(part, str)]
        if not media:
            return messages
        count = len([part for part in media if isinstance(part, Picture)])
        if count > self.max_images:
            raise TooLarge(
                f"the conversation holds {count} pictures; at most {self.max_images} are taken",
                param="messages",
            )
        films = [part for part in media if isinstance(part, Film)]
        if films and self.no_films:
            raise InvalidRequest(f"films are not taken: {self.no_films}", param=films[0].where)
        if len(films) > self.max_films:
            raise TooLarge(
                f"the conversation holds {len(films)} films; at most {self.max_films} are taken",
                param="messages",
            )
        return messages


def with_row_seeds(requests: Sequence[ChatRequest], seed: int | None) -> list[ChatRequest]:
    """`requests` with the seeds of `row_seeds`, one each."""
    seeds = row_seeds(seed, len(requests))
    return [
        x if x.seed == own else replace(x, seed=own) for x, own in zip(requests, seeds, strict=True)
    ]


def _picture(raw: bytes, row: int, bounds: PixelBounds | None) -> Picture:
    if not raw:
        raise InvalidRequest("image is empty", param="image", row=row)
    return Picture(raw, row=row, bounds=bounds)
