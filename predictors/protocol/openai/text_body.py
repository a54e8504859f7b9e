"""The checked bodies of all routes that answer with text, as one type."""

from __future__ import annotations

from predictors.protocol.openai.chat_body import ChatBody

TextBody = ChatBody
