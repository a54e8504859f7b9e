"""Tokens of prompts and chats, and texts of tokens, for callers who count them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from predictors.base import INLINE_BYTES, BasePredictor, caller_of
from predictors.chat.codec import ChatCodec
from predictors.chat.prompt_tokens import PromptTokens
from predictors.chat.request import ChatDelta, ChatRequest
from predictors.chat.work import ChatWork
from predictors.protocol.call import Call
from predictors.protocol.http.bodies import fail_at
from predictors.protocol.openai.tokens_body import DetokenizeBody, TokenizeBody

Predictor = BasePredictor[ChatRequest, ChatWork, ChatDelta]


class Tokenization:
    """Answers vLLM's routes for one model. Event loop; the work is done by the predictor's
    threads."""

    def __init__(
        self,
        predictor: Predictor,
        codec: ChatCodec,
        tokens: PromptTokens,
        max_context: Callable[[], int],
    ) -> None:
        self._predictor = predictor
        self._codec = codec
        self._tokens = tokens
        self._max_context = max_context

    async def tokenize(self, body: TokenizeBody, call: Call) -> dict[str, Any]:
        """The tokens of a prompt as requests have them: those of pictures are counted too."""
        predictor = self._predictor
        async with self._place(call):
            if body.chat is None:
                prompt = body.prompt or ""
                is_large = len(prompt) > INLINE_BYTES
                found = await predictor.off_loop(self._tokens.of_text, prompt, is_large=is_large)
            else:
                (request,) = self._codec.decode_chat(body.chat, call.adapters)
                found = (await predictor.prepare_row(request)).tokens.tolist()
            written = None
            if body.return_token_strs:
                written = await predictor.off_loop(self._tokens.written, found, is_large=True)
        counted = {"count": len(found), "max_model_len": self._max_context()}
        return {**counted, "tokens": found, "token_strs": written}

    async def detokenize(self, body: DetokenizeBody, call: Call) -> dict[str, Any]:
        work = (self._tokens.text_of, body.tokens, "tokens")
        async with self._place(call):
            is_large = len(body.tokens) > INLINE_BYTES
            return {"prompt": await self._predictor.off_loop(*work, is_large=is_large)}

    @asynccontextmanager
    async def _place(self, call: Call) -> AsyncIterator[None]:
        """Work that needs no engine has a place in the queue as well: the work that waits is
        bounded, and shared fairly."""
        call.begin_jobs(1)
        host, caller = self._predictor.host, caller_of(call.caller, call.weight, call.priority)
        host.reserve(1, caller, deadline=call.deadline)
        try:
            async with fail_at(call.deadline, "the deadline passed before this was done"):
                yield
        finally:
            host.release(1, caller)
