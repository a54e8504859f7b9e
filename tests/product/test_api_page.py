"""`docs/api.md` is true: its routes, names and statuses are the code's, and its examples run as
they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.routing import BaseRoute, Route

from predictors.chat import codec as qwen_vl_codec
from predictors.chat import v2_outputs
from predictors.chat.parameter_ranges import parameter_schemas
from predictors.chat.pixel_bounds import PixelLimits
from predictors.chat.request import Sampling
from predictors.diffusion import answers as flux_answers
from predictors.diffusion.request import ImageParameters
from predictors.errors import InvalidRequest
from predictors.operators.page_routes import page_routes
from predictors.protocol.anthropic import messages_body
from predictors.protocol.anthropic.routes import anthropic_routes
from predictors.protocol.faults import RENDERINGS
from predictors.protocol.openai import (
    chat_body,
    completions_body,
    edits_body,
    images_body,
    messages,
    responses_body,
)
from predictors.protocol.openai.clients import MESSAGE_CLIENTS
from predictors.protocol.openai.routes import openai_routes
from predictors.protocol.openapi.routes import openapi_routes
from predictors.protocol.registry import Registry
from predictors.protocol.v2.rest import v2_routes
from predictors.settings import ServerSettings, Settings
from tests.http.echo import PATIENCE_S, Running

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
NAME = re.compile(r"`([a-z_0-9]+)`")
MODEL = re.compile(r"{(?:name|model)(?::model)?}")
OF_EDITS = {
    name
    for name, rule in edits_body.OWN_FIELDS.items()
    if images_body.OWN_FIELDS.get(name) is not rule
}
"""Fields that edits take otherwise than generations."""
FIELDS = {
    "Pictures": set(images_body.OWN_FIELDS),
    "Edits": OF_EDITS,
    "Chat": set(chat_body.OWN_FIELDS),
    "Responses": set(responses_body.OWN_FIELDS),
    "Completions": set(completions_body.OWN_FIELDS),
    "Messages": set(messages_body.FIELDS),
}
HELLO = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def read_pictures(**fields: Any) -> images_body.ImagesBody:
    return images_body.read_images_body({"model": "flux", "prompt": "x"} | fields)


def read_edits(**fields: Any) -> edits_body.EditsBody:
    given = {"model": "flux", "prompt": "x", "image": "data:image/png;base64,AAAA"}
    return edits_body.read_edits_body(given | fields)


def read_chat(**fields: Any) -> chat_body.ChatBody:
    return chat_body.read_chat_body(HELLO | fields)


def read_responses(**fields: Any) -> responses_body.ResponsesBody:
    return responses_body.read_responses_body({"model": "m", "input": "x"} | fields)


def read_completions(**fields: Any) -> completions_body.CompletionsBody:
    return completions_body.read_completions_body({"model": "m", "prompt": "x"} | fields)


def read_messages(**fields: Any) -> messages_body.MessagesBody:
    return messages_body.read_messages_body(HELLO | {"max_tokens": 1} | fields)


READERS: dict[str, Callable[..., object]] = {
    "Pictures": read_pictures,
    "Edits": read_edits,
    "Chat": read_chat,
    "Responses": read_responses,
    "Completions": read_completions,
    "Messages": read_messages,
}
"""By heading, a body of the required fields and some more, as the server reads it."""


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    return re.split(rf"^#+ {re.escape(title)}$", PAGE, flags=re.MULTILINE)[1].split("\n#")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of the tables under a heading, headings and rules left out."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if not re.match(r"\|[-| ]+$", line)
    ]


def names(title: str) -> set[str]:
    return {name for row in rows(title) for name in NAME.findall(row[0])}


def playground(registry: Registry) -> list[BaseRoute]:
    return page_routes(Settings(server=ServerSettings(playground="on")))


def test_every_route_is_in_the_list_and_none_besides() -> None:
    registry = Registry([], Settings())
    served = {
        f"{method} {MODEL.sub('{model}', route.path)}".replace("{version}", "1")
        for make in (v2_routes, openai_routes, anthropic_routes, openapi_routes, playground)
        for route in make(registry)
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    listed = set(re.findall(r"`((?:GET|POST|DELETE) /[^`]*)`", PAGE.split("\n## ")[0]))
    assert listed == served | {"GET /metrics"}


def test_every_failure_has_its_row() -> None:
    shown = {(row[1][:3], row[2], row[3], row[4]) for row in rows("Statuses")[1:]}
    for rendering in RENDERINGS.values():
        status, grpc, kind = str(rendering.status), rendering.grpc_code.name, rendering.type
        code = "null" if rendering.code is None else rendering.code
        found = [s for s in shown if s[:2] == (status, grpc) and kind in s[2] and code in s[3]]
        assert found, (status, grpc, kind, code)
    assert len(shown) == len(RENDERINGS) + 1  # and the one for our own bugs


@pytest.mark.parametrize("title", READERS)
def test_every_openai_field_has_its_row_and_no_other_is_promised(title: str) -> None:
    inner = {"include_usage", "include_obfuscation", "continuous_usage_stats"}
    assert names(title) - inner == FIELDS[title]


@pytest.mark.parametrize("title", READERS)
def test_what_is_said_to_be_refused_is_refused_and_what_is_said_to_be_ignored_is(
    title: str,
) -> None:
    read = READERS[title]
    likely = ["x", True, {}, {"a": "b"}]
    for row in rows(title):
        for name in NAME.findall(row[0]):
            if row[1] == "refused" or row[1].startswith("only "):
                with pytest.raises(InvalidRequest) as refused:
                    read(**{name: {"type": "x"}})
                assert str(refused.value.param).startswith(name)
            if row[1].startswith("ignored"):
                assert any(is_ignored(read, name, value) for value in likely), name


def is_ignored(read: Callable[..., object], name: str, value: Any) -> bool:
    """True when the field is accepted at this value and changes nothing."""
    try:
        return read(**{name: value}) == read()
    except InvalidRequest:
        return False


def test_the_only_values_that_the_page_allows_are_taken() -> None:
    for title, fragment in {
        "Pictures": {"quality": "hd", "background": "opaque", "partial_images": 0}
        | {"style": "vivid", "moderation": "low", "stream": False},
        "Edits": {"input_fidelity": "high", "quality": "hd", "background": "opaque"},
        "Chat": {"response_format": {"type": "text"}, "modalities": ["text"], "logprobs": False}
        | {"top_logprobs": 0, "logit_bias": {}, "tools": [], "functions": []}
        | {"tool_choice": "auto", "function_call": "auto", "reasoning_effort": "none"}
        | {"verbosity": "medium"},
        "Messages": {"thinking": {"type": "disabled"}, "mcp_servers": [], "speed": "standard"}
        | {"context_management": {"edits": []}, "output_config": {"effort": "high"}},
    }.items():
        read = READERS[title]
        assert read(**fragment) == read()


def test_every_field_of_a_message_is_named() -> None:
    from_clients = {name for table in MESSAGE_CLIENTS.values() for name in table}
    assert set(messages.MESSAGE_FIELDS) - from_clients <= set(NAME.findall(section("Chat")))


def test_v2_names_are_the_codecs() -> None:
    parameters = {field.name for field in fields(ImageParameters)} - {"source"}
    assert names("FLUX") == parameters | {"image", "mask"} | {"timeout", "priority"}
    inputs = {str(tensor["name"]) for tensor in qwen_vl_codec.INPUT_TYPES}
    bounds = PixelLimits(1, 2, 2, 1)
    parameters = set(parameter_schemas(Sampling(), bounds, 0)) | {"loras", "stream"}
    assert names("Qwen2.5-VL") == inputs | parameters | {"timeout", "priority"}
    for title, codec in (("FLUX", flux_answers), ("Qwen2.5-VL", v2_outputs)):
        for tensor in codec.OUTPUT_TYPES:  # type: ignore[attr-defined]
            assert f"`{tensor['name']}` {tensor['datatype']} `[n]`" in section(title)


def run(block: tuple[str, str], running: Running, folder: Path) -> subprocess.CompletedProcess[str]:
    """One example, in a process of its own in `folder`, against the server of this folder."""
    language, text = block
    text = text.replace("127.0.0.1:8080", running.url.removeprefix("http://"))
    text = text.replace("127.0.0.1:8081", running.grpc_target)
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-ec", text]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.run(
        command,
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 3,
    )


def test_every_example_runs_as_it_stands(product: Running, tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "white").save(tmp_path / "scene.png")
    Image.new("L", (128, 128), 255).save(tmp_path / "mask.png")
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 12
    with ThreadPoolExecutor(2) as pool:
        ran = pool.map(lambda block: run(block, product, tmp_path), blocks)
        for block, done in zip(blocks, ran, strict=True):
            assert done.returncode == 0, f"{block[1]}\n{done.stdout}\n{done.stderr}"
            assert done.stdout.strip(), block[1]
            assert '{"error"' not in done.stdout, f"{block[1]}\n{done.stdout}"
