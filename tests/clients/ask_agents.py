"""OpenAI's agents with the chat-completions model: a run, a streamed run, a picture."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner
from openai import AsyncOpenAI

from tests.clients import report

INPUT: Any = [
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": report.QUESTION},
            {"type": "input_image", "image_url": report.data_url(), "detail": "auto"},
        ],
    }
]


def agent(instructions: str | None = None) -> Agent:
    client = AsyncOpenAI(base_url=report.base_url(), api_key=report.KEY, timeout=report.TIMEOUT_S)
    settings = ModelSettings(temperature=0, max_tokens=report.TOKENS, extra_body={"seed": 1})
    model = OpenAIChatCompletionsModel(model=report.MODEL, openai_client=client)
    return Agent(name="eyes", instructions=instructions, model=model, model_settings=settings)


def chat() -> Any:
    return {"text": asyncio.run(Runner.run(agent(), INPUT)).final_output}


def with_instructions() -> Any:
    result = asyncio.run(Runner.run(agent("Answer in one sentence."), "What is a circle?"))
    return bool(result.final_output)


def stream() -> Any:
    async def ask() -> str:
        result = Runner.run_streamed(agent(), INPUT)
        async for _ in result.stream_events():
            pass
        return str(result.final_output)

    return {"text": asyncio.run(ask())}


if __name__ == "__main__":
    report.run({"chat": chat, "stream": stream, "instructions": with_instructions})
