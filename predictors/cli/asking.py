"""The verb `ask`: a question about a picture, its answer printed as its words come."""

from __future__ import annotations

import argparse
import base64
import mimetypes
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from predictors.cli.endpoint import plain
from predictors.cli.models import CHAT
from predictors.cli.named_values import named_value
from predictors.cli.outcomes import DONE, NO_SERVER, REFUSED, VerbFailed, print_json
from predictors.cli.sources import AnswerSource
from predictors.errors import InvalidRequest

ROUTE = "/v1/chat/completions"
MAX_PICTURE_BYTES = 64 * 2**20


def run_ask(arguments: argparse.Namespace, source: AnswerSource) -> int:
    """Ask, print the words as they come; returns the exit code."""
    began = time.monotonic()
    url = data_url(arguments.picture)
    body = {
        "messages": picture_messages(url, arguments.question),
        "stream": True,
        **ask_options(arguments),
    }
    name = source.choose(CHAT, arguments.name)
    words, last = [], dict[str, Any]()
    for event in source.answers(ROUTE, {"model": name, **body}):
        last |= {key: event[key] for key in ("timings", "precision", "seed") if key in event}
        for text, reason in choice_texts(event):
            words.append(text)
            last |= {"finish_reason": reason} if reason else {}
            if not arguments.json:
                sys.stdout.write(plain(text))
                sys.stdout.flush()
    answer = "".join(words)
    if not words:
        raise VerbFailed("the server's answer has no words in it", NO_SERVER)
    if arguments.json:
        seconds = round(time.monotonic() - began, 3)
        print_json({"answer": answer, "model": name, **last, "seconds": seconds})
    elif not answer.endswith("\n"):
        sys.stdout.write("\n")
    return DONE


def ask_options(arguments: argparse.Namespace) -> dict[str, Any]:
    asked = {
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
    }
    given = {field: value for field, value in asked.items() if value is not None}
    return {**given, **dict(map(named_value, arguments.parameter))}


def picture_messages(url: str, question: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def data_url(path: Path) -> str:
    """The picture in a file, or on stdin for `-`. Raises `VerbFailed` for too much, or nothing."""
    try:
        if str(path) == "-":
            content = sys.stdin.buffer.read(MAX_PICTURE_BYTES + 1)
        else:
            with path.open("rb") as file:
                content = file.read(MAX_PICTURE_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"{str(path)!r} can't be read: {error.strerror}") from error
    if not content or len(content) > MAX_PICTURE_BYTES:
        wrong = "is empty" if not content else f"has more than {MAX_PICTURE_BYTES // 2**20} MiB"
        raise VerbFailed(f"{str(path)!r} {wrong}", REFUSED)
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    if not kind.startswith("image/"):
        raise VerbFailed(f"{str(path)!r} is no picture, by its name ({kind})", REFUSED)
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def choice_texts(event: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The text and the reason of its end, of each choice of a chunk, or of a whole answer."""
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if not isinstance(choice, Mapping):
            continue
        said = choice.get("message", choice.get("delta"))
        if not isinstance(said, Mapping):
            continue
        text = said.get("content")
        reason = choice.get("finish_reason")
        yield text if isinstance(text, str) else "", reason if isinstance(reason, str) else ""
