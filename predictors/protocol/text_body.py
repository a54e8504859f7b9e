"""The checked bodies of all routes that answer with text, as one type."""

from __future__ import annotations

from predictors.protocol.anthropic.messages_body import MessagesBody
from predictors.protocol.openai.chat_body import ChatBody
from predictors.protocol.openai.completions_body import CompletionsBody
from predictors.protocol.openai.responses_body import ResponsesBody

TextBody = ChatBody | ResponsesBody | CompletionsBody | MessagesBody
"""Each has a `model`, `stream`, `n`, the number of its jobs, and `spelt`, the caller's names of a
chat's fields."""
