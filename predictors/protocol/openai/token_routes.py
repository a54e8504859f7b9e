"""The operations that turn text into tokens and back, as vLLM has them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from predictors.protocol.call import Call
from predictors.protocol.http.responses import Response, json_response
from predictors.protocol.openai.completions_body import SPELT
from predictors.protocol.openai.operations import Operation
from predictors.protocol.openai.spelling import respelling
from predictors.protocol.openai.tokens_body import (
    DetokenizeBody,
    TokenizeBody,
    decode_detokenize_body,
    decode_tokenize_body,
)
from predictors.protocol.serves import ServesTokens, offers

INLINE_TOKENS = 4096
"""Longer lists are written by a thread."""


async def _reply_tokens(model: ServesTokens, body: TokenizeBody, call: Call) -> Response:
    with respelling(SPELT if body.chat is None else {}):
        answer = await model.tokenize(body, call)
    return await _written(answer, "tokens")


async def _reply_text(model: ServesTokens, body: DetokenizeBody, call: Call) -> Response:
    return await _written(await model.detokenize(body, call), "prompt")


async def _written(answer: dict[str, Any], large: str) -> Response:
    if len(answer[large]) <= INLINE_TOKENS:
        return json_response(answer)
    return await asyncio.to_thread(json_response, answer)


SERVES_TOKENS = partial(offers, kind=ServesTokens)
TOKENIZE = Operation(
    name="tokenize",
    route="/tokenize",
    decode=decode_tokenize_body,
    serves=SERVES_TOKENS,
    reply=_reply_tokens,
    needs_model=False,
)
DETOKENIZE = Operation(
    name="detokenize",
    route="/detokenize",
    decode=decode_detokenize_body,
    serves=SERVES_TOKENS,
    reply=_reply_text,
    needs_model=False,
)
