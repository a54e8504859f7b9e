"""OpenAI's agents over chat completions and over responses: runs, streams, a picture, a tool."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.clients import report
from tests.clients.shapes import Shape

INPUT: Any = [
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": report.QUESTION},
            {"type": "input_image", "image_url": report.data_url(), "detail": "auto"},
        ],
    }
]


def agent(instructions: str | None = None, kind: Any = OpenAIChatCompletionsModel) -> Agent:
    client = AsyncOpenAI(base_url=report.base_url(), api_key=report.KEY, timeout=report.TIMEOUT_S)
    settings = ModelSettings(temperature=0, max_tokens=report.TOKENS, extra_body={"seed": 1})
    model = kind(model=report.MODEL, openai_client=client)
    return Agent(name="eyes", instructions=instructions, model=model, model_settings=settings)


def chat(kind: Any = OpenAIChatCompletionsModel) -> Any:
    return {"text": asyncio.run(Runner.run(agent(kind=kind), INPUT)).final_output}


def with_instructions() -> Any:
    result = asyncio.run(Runner.run(agent("Answer in one sentence."), "What is a circle?"))
    return bool(result.final_output)


def stream(kind: Any = OpenAIChatCompletionsModel) -> Any:
    async def ask() -> str:
        result = Runner.run_streamed(agent(kind=kind), INPUT)
        async for _ in result.stream_events():
            pass
        return str(result.final_output)

    return {"text": asyncio.run(ask())}


counted: list[str] = []


@function_tool
def count_shapes(shape: Shape) -> int:
    """Counts the shapes of one kind."""
    counted.append(shape)
    return 3


class Seen(BaseModel):
    shape: Shape


def tool_loop(kind: Any = OpenAIChatCompletionsModel, *, is_streamed: bool) -> Any:
    """The agent must call first; then it reads the result and answers."""
    counted.clear()
    talker = agent(kind=kind)
    talker.tools = [count_shapes]
    talker.model_settings.tool_choice = "required"
    talker.model_settings.parallel_tool_calls = False
    talker.model_settings.max_tokens = report.CALL_TOKENS

    async def ask() -> Any:
        if not is_streamed:
            return await Runner.run(talker, INPUT, max_turns=4)
        result = Runner.run_streamed(talker, INPUT, max_turns=4)
        async for _ in result.stream_events():
            pass
        return result

    result = asyncio.run(ask())
    items = [type(item).__name__ for item in result.new_items]
    return {"shapes": list(counted), "items": items, "answered": bool(result.final_output)}


@function_tool(name_override="count_shapes")
def count_all() -> int:
    """Count the shapes in the picture."""
    counted.append("all")
    return 7


def own_call(kind: Any = OpenAIChatCompletionsModel) -> Any:
    """Nothing makes the model call: it does so since a tool answers the question."""
    counted.clear()
    talker = agent(kind=kind)
    talker.tools = [count_all]
    talker.model_settings.max_tokens = report.CALL_TOKENS
    asked = [{"role": "user", "content": [
        {"type": "input_image", "image_url": report.data_url(), "detail": "auto"},
        {"type": "input_text", "text": report.COUNTING},
    ]}]  # fmt: skip
    result = asyncio.run(Runner.run(talker, asked, max_turns=4))
    items = [type(item).__name__ for item in result.new_items]
    return {"calls": len(counted), "items": items, "text": result.final_output}


def typed() -> Any:
    talker = agent()
    talker.output_type = Seen
    talker.model_settings.max_tokens = report.CALL_TOKENS
    return asyncio.run(Runner.run(talker, INPUT)).final_output.model_dump()


if __name__ == "__main__":
    report.run(
        {
            "chat": chat,
            "stream": stream,
            "instructions": with_instructions,
            "tool loop": lambda: tool_loop(is_streamed=False),
            "streamed loop": lambda: tool_loop(is_streamed=True),
            "own call": own_call,
            "own call over responses": lambda: own_call(OpenAIResponsesModel),
            "typed": typed,
            "responses": lambda: chat(OpenAIResponsesModel),
            "streamed responses": lambda: stream(OpenAIResponsesModel),
            "responses loop": lambda: tool_loop(OpenAIResponsesModel, is_streamed=False),
            "streamed responses loop": lambda: tool_loop(OpenAIResponsesModel, is_streamed=True),
        }
    )
