"""Payloads of Open WebUI, LibreChat and LangChain.js, as their documentation and code have them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

PAYLOADS = sorted((Path(__file__).parent / "payloads").glob("*.json"))
SIZE = "64x64"  # instead of theirs: the checkpoint draws on a CPU


def read(path: Path, picture: Path) -> tuple[str, dict[str, Any]]:
    """The path and body of a payload, with the picture in its place."""
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    payload = json.loads(path.read_text().replace("PICTURE", url))
    body: dict[str, Any] = payload["body"]
    if "size" in body:
        body["size"] = SIZE
    return payload["path"], body


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_there_are_payloads_of_each_program() -> None:
    assert {path.stem.split("_")[0] for path in PAYLOADS} == {"open", "librechat", "langchainjs"}


@pytest.mark.parametrize("path", PAYLOADS, ids=lambda path: path.stem)
def test_a_payload_is_answered(http: httpx.Client, picture: Path, path: Path) -> None:
    route, body = read(path, picture)
    reply = http.post(route, json=body)
    assert reply.status_code == 200, reply.text[:500]
    if route.endswith("/images/generations"):
        entry = reply.json()["data"][0]
        if body.get("response_format") == "url":
            assert http.get(entry["url"]).raise_for_status().content.startswith(b"\x89PNG")
        else:
            assert base64.b64decode(entry["b64_json"]).startswith(b"\x89PNG")
    elif body.get("stream"):
        chunks = events(reply)
        texts = [c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]]
        assert "".join(texts)
        if "stream_options" in body:
            assert chunks[-1]["usage"]["completion_tokens"] > 0
    else:
        assert reply.json()["choices"][0]["message"]["content"]
