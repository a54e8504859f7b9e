"""pydantic-ai's OpenAIChatModel: a run with a picture, a streamed run, a conversation."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients import report
from tests.clients.shapes import Shape

PROMPT: Any = [report.QUESTION, BinaryContent(data=report.picture(), media_type="image/png")]


def agent(**more: Any) -> Agent:
    provider = OpenAIProvider(base_url=report.base_url(), api_key=report.KEY)
    settings: Any = {
        "temperature": 0,
        "max_tokens": report.TOKENS,
        "seed": 1,
        "timeout": report.TIMEOUT_S,
    }
    return Agent(OpenAIChatModel(report.MODEL, provider=provider), model_settings=settings, **more)


def chat() -> Any:
    result = asyncio.run(agent().run(PROMPT))
    usage = result.usage() if callable(result.usage) else result.usage
    return {"text": result.output, "usage": usage.input_tokens}


def stream() -> Any:
    async def ask() -> str:
        async with agent().run_stream(PROMPT) as result:
            return "".join([piece async for piece in result.stream_text(delta=True)])

    return {"text": asyncio.run(ask())}


def conversation() -> Any:
    async def ask() -> bool:
        talker = agent(system_prompt="Answer shortly.")
        first = await talker.run(PROMPT)
        second = await talker.run("And the colour?", message_history=first.all_messages())
        return bool(second.output)

    return asyncio.run(ask())


class Seen(BaseModel):
    shape: Shape
    filled: bool


def typed(output_type: Any) -> Any:
    talker = agent(output_type=output_type)
    settings: Any = {"max_tokens": report.CALL_TOKENS}
    return asyncio.run(talker.run(PROMPT, model_settings=settings)).output.model_dump()


if __name__ == "__main__":
    report.run(
        {
            "chat": chat,
            "stream": stream,
            "conversation": conversation,
            "output tool": lambda: typed(Seen),
            "native output": lambda: typed(NativeOutput(Seen)),
        }
    )
