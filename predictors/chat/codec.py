"""Translates V2 and OpenAI chat bodies to requests, and answers to responses.

Defaults come from the checkpoint's `generation_config.json` on every protocol; a request overrides
them field by field. Row i of a request (V2 row, or choice of `n`) uses seed + i.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from predictors.base import Answer
from predictors.chat.parameter_ranges import check_parameter, read_stops
from predictors.chat.request import (
    ChatDelta,
    ChatRequest,
    Message,
    Picture,
    PictureSize,
    PixelBounds,
    PixelLimits,
    Sampling,
    pictures_of,
)
from predictors.chat.streaming import check_streamed_chat
from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import ChatBody
from predictors.protocol.openai.messages import BodyMessage, PicturePart
from predictors.protocol.openai.pixel_fields import DETAILS, RequestedPixels
from predictors.protocol.openai.routes import TextEvents, event
from predictors.protocol.seeds import row_seeds
from predictors.protocol.v2.values import (
    InputTensors,
    Parameters,
    Tensor,
    V2Request,
    V2Response,
    count_rows,
)

SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
IGNORED = ("binary_data_output", "timeout", "priority")  # the last two were read on the way

INPUT_TYPES = [
    {"name": "prompt", "datatype": "BYTES", "shape": [-1]},
    {"name": "image", "datatype": "BYTES", "shape": [-1]},
]
OUTPUT_TYPES = [
    {"name": "text", "datatype": "BYTES", "shape": [-1]},
    {"name": "finish_reason", "datatype": "BYTES", "shape": [-1]},
    {"name": "prompt_tokens", "datatype": "INT64", "shape": [-1]},
    {"name": "completion_tokens", "datatype": "INT64", "shape": [-1]},
    {"name": "image_width", "datatype": "INT64", "shape": [-1]},
    {"name": "image_height", "datatype": "INT64", "shape": [-1]},
    {"name": "image_tokens", "datatype": "INT64", "shape": [-1]},
]
NO_PICTURE = PictureSize(0, 0, 0)

ChatAnswer = Answer[ChatRequest, ChatDelta]


@dataclass(frozen=True, slots=True)
class ChatCodec:
    """Both translations for one model. Responses name its `precision`. Any thread."""

    defaults: Sampling
    precision: str
    max_images: int
    pixels: PixelLimits

    # -- V2 --------------------------------------------------------------------------------------
    def decode_v2(self, request: V2Request) -> list[ChatRequest]:
        """One chat per row, of one user message: the picture, if there is one, then the prompt."""
        inputs = InputTensors(request.inputs)
        prompts, images = inputs.read_text("prompt"), inputs.read_files("image")
        inputs.reject_unread()
        if prompts is None:
            raise InvalidRequest("input 'prompt' is required", param="prompt")
        count_rows(prompt=prompts, image=images)
        parameters = Parameters(request.parameters, ignored=IGNORED)
        bounds = self._read_bounds(parameters)
        common, seed = self._decode_parameters(parameters)
        system = request.parameters.get("system_prompt")
        opening = () if system is None else (Message("system", (str(system),)),)
        rows = []
        for i, prompt in enumerate(prompts):
            parts = (prompt,) if images is None else (_picture(images[i], i, bounds), prompt)
            rows.append(replace(common, messages=(*opening, Message("user", parts))))
        check_streamed_chat(request, len(rows))
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

    def _decode_parameters(self, parameters: Parameters) -> tuple[ChatRequest, int | None]:
        """The fields that all rows share, and the first row's seed."""
        given: dict[str, Any] = {
            name: (parameters.read_int if name == "top_k" else parameters.read_float)(name)
            for name in SAMPLING_FIELDS
        }
        seed, max_tokens = parameters.read_int("seed"), parameters.read_int("max_tokens")
        stop = read_stops(parameters.read_text("stop"))
        parameters.read_text("system_prompt")
        parameters.read_flag("stream")
        parameters.reject_unread()
        for name, value in {"max_tokens": max_tokens, **given}.items():
            check_parameter(name, value)
        sampling = self._sampling(given)
        return ChatRequest((), sampling, seed=0, max_tokens=max_tokens, stop=stop), seed

    def _sampling(self, given: Mapping[str, Any]) -> Sampling:
        chosen = {name: value for name, value in given.items() if value is not None}
        if chosen.get("top_k", 0) < 0:
            chosen["top_k"] = 0  # -1 is off, as in vLLM
        return replace(self.defaults, **chosen)

    def encode_v2(self, request: V2Request, answers: Sequence[ChatAnswer]) -> V2Response:
        """Texts, counts and picture sizes of all rows; times of the slowest row; `seed` of the
        first row."""
        completions = [Completion.of(answer) for answer in answers]
        sizes = [next(iter(c.pictures), NO_PICTURE) for c in completions]  # one picture per row
        shape = (len(completions),)
        columns: list[tuple[str, list[Any]]] = [
            ("text", [c.text.encode() for c in completions]),
            ("finish_reason", [c.finish_reason.encode() for c in completions]),
            ("prompt_tokens", [c.prompt_tokens for c in completions]),
            ("completion_tokens", [c.completion_tokens for c in completions]),
            ("image_width", [size.width for size in sizes]),
            ("image_height", [size.height for size in sizes]),
            ("image_tokens", [size.tokens for size in sizes]),
        ]
        types = {entry["name"]: str(entry["datatype"]) for entry in OUTPUT_TYPES}
        tensors = [Tensor(n, types[n], shape, c, text=types[n] == "BYTES") for n, c in columns]
        parameters: dict[str, str | int | bool] = {
            "precision": self.precision,
            "queue_ms": max(answer.queue_ms for answer in answers),
            "compute_ms": max(answer.compute_ms for answer in answers),
            "seed": answers[0].request.seed,
        }
        return V2Response(request.model, request.id, tuple(tensors), parameters)

    # -- OpenAI chat -----------------------------------------------------------------------------
    def decode_chat(self, body: ChatBody) -> list[ChatRequest]:
        """One request per choice."""
        given = {name: getattr(body, name) for name in SAMPLING_FIELDS}
        request = ChatRequest(
            messages=self._messages(body),
            sampling=self._sampling(given),
            seed=0,
            max_tokens=body.max_tokens,
            stop=body.stop,
            ignore_eos=body.ignore_eos,
        )
        return with_row_seeds([request] * body.n, body.seed)

    def _messages(self, body: ChatBody) -> tuple[Message, ...]:
        common = self.pixels.choose(body.pixels.min_pixels, body.pixels.max_pixels)
        messages = tuple(self._message(turn, body.pixels, common) for turn in body.messages)
        count = sum(isinstance(part, Picture) for m in messages for part in m.parts)
        if count > self.max_images:
            raise TooLarge(
                f"messages hold {count} pictures; at most {self.max_images} are taken",
                param="messages",
            )
        return messages

    def _message(
        self, turn: BodyMessage, asked: RequestedPixels, common: PixelBounds | None
    ) -> Message:
        """A message. `common` is what the body asks for all pictures; one may ask for more or
        less."""

        def part_of(part: str | PicturePart) -> str | Picture:
            if isinstance(part, str):
                return part
            own, bounds = part.pixels, common
            least, most = own.min_pixels, own.max_pixels or self.pixels.of_detail(own.detail)
            if least or most:
                given = (least or asked.min_pixels, most or asked.max_pixels)
                bounds = self.pixels.choose(*given, part.where)
            return Picture(part.file, part.where, bounds=bounds)

        return Message(turn.role, tuple(map(part_of, turn.parts)))

    def encode_chat(
        self, body: ChatBody, call: Call, answers: Sequence[ChatAnswer]
    ) -> dict[str, Any]:
        completions = [Completion.of(answer) for answer in answers]
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": None,
                "finish_reason": completion.finish_reason,
            }
            for i, completion in enumerate(completions)
        ]
        counts = [
            (completion.prompt_tokens, completion.completion_tokens) for completion in completions
        ]
        queue_ms = max(answer.queue_ms for answer in answers)
        compute_ms = max(answer.compute_ms for answer in answers)
        return {
            **_head(body, call, "chat.completion"),
            "choices": choices,
            "usage": usage(counts, completions[0].pictures),
            "timings": {"queue_ms": queue_ms, "compute_ms": compute_ms},
            "precision": self.precision,
            "seed": answers[0].request.seed,
        }


@dataclass(frozen=True, slots=True)
class Completion:
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    pictures: tuple[PictureSize, ...]

    @classmethod
    def of(cls, answer: ChatAnswer) -> Completion:
        """The joined deltas; the last one has reason and counts."""
        last = answer.chunks[-1]
        assert last.finish_reason is not None
        text = "".join(delta.text for delta in answer.chunks)
        counts = (last.prompt_tokens, last.completion_tokens)
        return cls(text, last.finish_reason, *counts, pictures_of(last))


class ChunkEncoder:
    """Encodes the events of one streamed chat: roles first, then texts; counts and times last."""

    def __init__(
        self, body: ChatBody, call: Call, precision: str, requests: Sequence[ChatRequest]
    ) -> None:
        self._head = _head(body, call, "chat.completion.chunk")
        self._with_usage = body.stream_options.include_usage
        self._in_every_chunk = body.stream_options.continuous_usage_stats
        self._counts = [(0, 0)] * len(requests)
        self._open = len(requests)
        self._last = {"precision": precision, "seed": requests[0].seed}
        blank = [self._text_chunk(i, "") for i in range(len(requests))]
        self._texts = [TextEvents(chunk) for chunk in blank]

    def opening(self) -> bytes:
        role = {"role": "assistant", "content": ""}
        chunks = [self._chunk([_choice(i, role, None)]) for i in range(len(self._counts))]
        return b"".join(map(event, chunks))

    def deltas(
        self, index: int, deltas: Sequence[ChatDelta], timings: Callable[[], Mapping[str, int]]
    ) -> bytes:
        """The events for new deltas of choice `index`, with their texts joined. `timings` is called
        once, at the end. No delta may follow one with a finish reason."""
        last = deltas[-1]
        self._counts[index] = (last.prompt_tokens, last.completion_tokens)
        text = last.text if len(deltas) == 1 else "".join([delta.text for delta in deltas])
        events = self._text(index, text) if text else b""
        if last.finish_reason is not None:
            events += b"".join(map(event, self._ending(index, last, timings)))
        return events

    def _text(self, index: int, text: str) -> bytes:
        if self._in_every_chunk:  # they differ in more than the text
            return event(self._text_chunk(index, text))
        return self._texts[index].event(text)

    def _ending(
        self, index: int, last: ChatDelta, timings: Callable[[], Mapping[str, int]]
    ) -> list[dict[str, Any]]:
        chunks = [self._chunk([_choice(index, {}, last.finish_reason)])]
        self._open -= 1
        if self._open == 0:
            if self._with_usage:
                chunks.append({**self._chunk([]), "usage": usage(self._counts, pictures_of(last))})
            chunks[-1] |= {"timings": dict(timings()), **self._last}
        return chunks

    def _text_chunk(self, index: int, text: str) -> dict[str, Any]:
        return self._chunk([_choice(index, {"content": text}, None)])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "choices": choices}
        if not self._with_usage:
            return chunk
        return {**chunk, "usage": usage(self._counts) if self._in_every_chunk else None}


def with_row_seeds(requests: Sequence[ChatRequest], seed: int | None) -> list[ChatRequest]:
    """The same requests with the seeds of `row_seeds`."""
    seeds = row_seeds(seed, len(requests))
    return [replace(x, seed=own) for x, own in zip(requests, seeds, strict=True)]


def usage(
    counts: Sequence[tuple[int, int]], pictures: Sequence[PictureSize] = ()
) -> dict[str, Any]:
    """OpenAI's usage of choices with (prompt, completion) tokens: the prompt is counted once. The
    sizes of its pictures stand beside it if there are any."""
    prompt, completion = counts[0][0], sum(completion for _, completion in counts)
    counted: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if pictures:
        counted["prompt_images"] = [asdict(size) for size in pictures]
    return counted


def _head(body: ChatBody, call: Call, kind: str) -> dict[str, Any]:
    identity = f"chatcmpl-{call.request_id}"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": body.model}


def _choice(index: int, delta: Mapping[str, str], reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": reason}


def _picture(raw: bytes, row: int, bounds: PixelBounds | None) -> Picture:
    if not raw:
        raise InvalidRequest("image is empty", param="image", row=row)
    return Picture(raw, row=row, bounds=bounds)
