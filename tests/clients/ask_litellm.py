"""LiteLLM: completion, stream, and a context that is too long, recognised as such."""

from __future__ import annotations

from typing import Any

import litellm

from tests.clients import report

FIELDS: dict[str, Any] = {
    "model": f"openai/{report.MODEL}",
    "api_base": report.base_url(),
    "api_key": report.KEY,
    "max_tokens": report.TOKENS,
    "temperature": 0,
    "seed": 1,
    "timeout": report.TIMEOUT_S,
}


def chat() -> Any:
    reply = litellm.completion(messages=report.messages(), **FIELDS)
    return {"text": reply.choices[0].message.content, "usage": reply.usage.prompt_tokens}


def stream() -> Any:
    chunks = litellm.completion(messages=report.messages(), stream=True, **FIELDS)
    return {"text": "".join(c.choices[0].delta.content or "" for c in chunks)}


def overflow() -> Any:
    return litellm.completion(messages=[{"role": "user", "content": report.LONG}], **FIELDS).id


if __name__ == "__main__":
    report.run({"chat": chat, "stream": stream, "overflow": overflow})
