"""A chat's answer over V2 in parts: what may ask for one, and the response for new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson

from predictors.base import Answer
from predictors.chat.request import ChatDelta, ChatRequest, scores_of
from predictors.chat.token_controls import v2_writer
from predictors.errors import InvalidRequest
from predictors.protocol.v2.values import Tensor, V2Request, V2Response

if TYPE_CHECKING:
    from predictors.chat.codec import ChatCodec


def check_streamed_chat(request: V2Request, num_rows: int) -> None:
    """Raise `InvalidRequest` where the parameter `stream` is set and can't be had."""
    if not request.parameters.get("stream"):
        return
    if not request.is_streamed:
        raise InvalidRequest(
            "stream needs an answer in parts: ModelStreamInfer over gRPC, or 'stream' of "
            "POST /v1/chat/completions",
            param="stream",
        )
    if num_rows > 1:
        raise InvalidRequest(
            f"stream is for one answer; the request has {num_rows} rows", param="stream"
        )


def encode_deltas(
    codec: ChatCodec,
    request: V2Request,
    row: ChatRequest,
    deltas: Sequence[ChatDelta],
    times_ms: tuple[int, int],
) -> V2Response:
    """The response for new deltas of an answer: their text, and everything else of `encode_v2` with
    the last one. `times_ms` are those in queue and engine."""
    text, last = "".join(delta.text for delta in deltas), deltas[-1]
    if last.finish_reason is None:
        outputs = [Tensor("text", "BYTES", (1,), [text.encode()], text=True)]
        if (writer := v2_writer(request, row, codec.logprobs)) is not None:
            scores = [score for delta in deltas for score in scores_of(delta)]
            written = orjson.dumps(writer.part(scores))
            outputs.append(Tensor("logprobs", "BYTES", (1,), [written], text=True))
        return V2Response(request.model, request.id, tuple(outputs), is_final=False)
    queue_ms, compute_ms = times_ms
    answer = Answer(row, tuple(deltas), queue_ms, compute_ms)
    return codec.encode_v2(request, [answer])
