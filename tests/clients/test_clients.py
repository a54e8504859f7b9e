"""Widely used clients from PyPI, unmodified, against the real server. `make test-clients`."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conftest import Ask
from tests.clients.report import MODEL, QUESTION, TOKENS
from tests.clients.shapes import SHAPES

CLIENTS = ("openai", "langchain", "litellm", "agents", "pydantic_ai", "anthropic")


@pytest.fixture(scope="session")
def expected(http: httpx.Client, picture: Path) -> dict[str, Any]:
    """The server's answer to the picture, asked without any client."""
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    parts = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": TOKENS,
        "temperature": 0,
    }
    reply = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    text = reply["choices"][0]["message"]["content"]
    assert "red" in text
    return {"text": text, "prompt_tokens": reply["usage"]["prompt_tokens"]}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_the_answer_to_a_picture(
    ask: Ask, expected: dict[str, Any], client: str
) -> None:
    found = ask(client)
    assert found["chat"]["text"] == expected["text"], found["chat"]
    assert found["stream"]["text"] == expected["text"], found["stream"]


def test_openais_client_reads_everything_that_it_names(ask: Ask, expected: dict[str, Any]) -> None:
    found = ask("openai")
    assert sorted(found["models"]) == ["flux", "qwen-vl"]
    assert found["chat"]["usage"]["prompt_tokens"] == expected["prompt_tokens"]
    assert found["stream"]["usage"] == found["chat"]["usage"]
    assert "BadRequestError" in found["overflow"]["raised"]
    assert found["overflow"]["code"] == "context_length_exceeded"
    assert bytes.fromhex(found["drawn file"]) == b"\x89PNG\r\n\x1a\n"


def test_a_link_to_a_picture_leads_to_it(ask: Ask, http: httpx.Client) -> None:
    url = ask("openai")["drawn url"]
    assert url.startswith(str(http.base_url).rstrip("/")), url
    assert http.get(url).raise_for_status().content.startswith(b"\x89PNG")


def test_langchain_counts_streams_batches_and_converses(ask: Ask, expected: dict[str, Any]) -> None:
    found = ask("langchain")
    assert found["blocks"]["text"] == expected["text"], found["blocks"]
    assert found["chat"]["usage"]["input_tokens"] == expected["prompt_tokens"]
    assert found["stream"]["usage"] == found["chat"]["usage"]
    assert found["stream"]["pieces"] > 1
    assert found["batch"] == [expected["text"]] * 2
    assert found["conversation"] is True, found["conversation"]


@pytest.mark.parametrize(
    ("client", "error"),
    [("litellm", "ContextWindowExceededError"), ("langchain", "ContextOverflowError")],
)
def test_a_prompt_beyond_the_context_is_recognised(ask: Ask, client: str, error: str) -> None:
    found = ask(client)["overflow"]
    assert error in found["raised"], found


def test_agents_take_instructions_and_conversations(ask: Ask) -> None:
    assert ask("agents")["instructions"] is True, ask("agents")
    assert ask("pydantic_ai")["conversation"] is True, ask("pydantic_ai")


def test_anthropics_client_counts_stops_and_goes_on(ask: Ask, expected: dict[str, Any]) -> None:
    found = ask("anthropic")
    used = found["chat"]["usage"]
    prompt = used["input_tokens"] + used["cache_read_input_tokens"]
    assert (prompt, found["chat"]["counted"]) == (expected["prompt_tokens"],) * 2
    assert found["chat"]["stop"] == found["stream"]["stop"] == "end_turn"
    assert found["stream"]["final"] == expected["text"]
    assert found["stream"]["pieces"] > 1
    assert found["stream"]["usage"]["output_tokens"] == used["output_tokens"]
    stopped = found["stopped"]
    assert (stopped["stop"], stopped["sequence"]) == ("stop_sequence", "red"), stopped
    assert stopped["whole"] == expected["text"]


def test_anthropics_client_calls_a_tool_and_keeps_a_form(ask: Ask) -> None:
    found = ask("anthropic")
    call = found["streamed call"]
    assert call.get("input", {}).get("shape") in SHAPES, call
    assert (call["reason"], call["answered"]) == ("tool_use", True)
    assert "input_json" in call["events"]
    assert json.loads(found["form"])["shape"] in SHAPES, found["form"]


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ("overflow", "BadRequestError", "prompt is too long"),
        ("unknown model", "NotFoundError", "there is no model 'claude'"),
        ("unknown field", "BadRequestError", "did you mean 'seed'"),
    ],
)
def test_anthropics_client_reads_failures(ask: Ask, case: str, error: str, words: str) -> None:
    found = ask("anthropic")[case]
    assert error in found["raised"], found
    assert words in found["text"]


# -- tools and structured output -------------------------------------------------------------------
def is_seen(found: dict[str, Any]) -> bool:
    return found.get("shape") in SHAPES and isinstance(found.get("filled"), bool)


def test_openais_client_parses_answers_and_calls(ask: Ask) -> None:
    found = ask("openai")
    assert is_seen(found["parsed"]), found["parsed"]
    assert is_seen(found["parsed call"]), found["parsed call"]
    call = found["streamed call"]
    assert call.get("arguments", {}).get("shape") in SHAPES, call
    assert (call["reason"], call["answered"]) == ("tool_calls", True)
    assert call["events"] == [f"tool_calls.function.arguments.{x}" for x in ("delta", "done")]


def test_langchain_calls_tools_and_gives_structured_output(ask: Ask) -> None:
    found = ask("langchain")
    loop = found["tool loop"]
    assert loop["shapes"], loop
    assert loop["results"] == [len(shape) for shape in loop["shapes"]]
    assert loop["answered"] is True
    assert found["streamed call"][0] in SHAPES, found["streamed call"]
    for method in ("function_calling", "json_schema"):
        assert found[method].get("shape") in SHAPES, (method, found[method])
    (listed,) = found["json_mode"]["shapes"]
    assert listed["kind"] in SHAPES, found["json_mode"]


@pytest.mark.parametrize("way", ["responses", "streamed responses"])
def test_agents_say_over_responses_what_a_chat_says(
    ask: Ask, expected: dict[str, Any], way: str
) -> None:
    assert ask("agents")[way]["text"] == expected["text"], ask("agents")[way]


LOOPS = ["tool loop", "streamed loop", "responses loop", "streamed responses loop"]


@pytest.mark.parametrize("way", LOOPS)
def test_an_agent_runs_its_tool_and_answers(ask: Ask, way: str) -> None:
    found = ask("agents")[way]
    assert found.get("shapes"), found
    assert set(found["shapes"]) <= set(SHAPES)
    assert found["items"][:2] == ["ToolCallItem", "ToolCallOutputItem"]
    assert found["answered"] is True


@pytest.mark.parametrize("way", ["own call", "own call over responses"])
def test_the_captioner_calls_a_tool_by_itself_and_reads_its_result(ask: Ask, way: str) -> None:
    found = ask("agents")[way]
    assert found.get("calls") == 1, found
    assert found["items"] == ["ToolCallItem", "ToolCallOutputItem", "MessageOutputItem"]
    assert found["text"] == "There are 7 shapes."


def test_agents_have_typed_outputs(ask: Ask) -> None:
    assert ask("agents")["typed"].get("shape") in SHAPES, ask("agents")["typed"]
    for way in ("output tool", "native output"):
        assert is_seen(ask("pydantic_ai")[way]), ask("pydantic_ai")[way]


@pytest.mark.parametrize("way", ["tools", "json_schema", "parts"])
def test_instructor_fills_its_model(ask: Ask, way: str) -> None:
    assert is_seen(ask("instructor")[way]), ask("instructor")[way]


@pytest.mark.parametrize("method", ["plain", "gzip", "deflate"])
def test_tritonclient_may_compress(ask: Ask, expected: dict[str, Any], method: str) -> None:
    found = ask("triton")[method]
    assert found["text"] == expected["text"], found


def test_tritonclient_may_ping_during_pictures(ask: Ask) -> None:
    found = ask("triton")["pings"]
    assert found.get("pictures", 0) > 0, found
    assert found["seconds"] > 25


def test_tritonclient_streams_pictures_and_words(ask: Ask, expected: dict[str, Any]) -> None:
    found = ask("triton")["streamed"]
    assert found.get("text") == expected["text"], found
    assert (found["files"], found["png"]) == (3, True)


def test_openais_client_streams_pictures(ask: Ask) -> None:
    found = ask("openai")["drawn stream"]
    assert found["kinds"] == ["completed", "partial_image", "progress"], found
    assert (found["files"], found["same"]) == (3, True)
