"""The verb `draw`: one picture from a server or a model in this process, into a file."""

from __future__ import annotations

import argparse
import base64
import binascii
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from predictors.cli.arguments import new_file
from predictors.cli.endpoint import plain
from predictors.cli.models import IMAGES
from predictors.cli.named_values import named_value
from predictors.cli.outcomes import DONE, NO_SERVER, REFUSED, VerbFailed, print_json
from predictors.cli.sources import AnswerSource
from predictors.cli.terminal_pictures import picture_codes, picture_protocol

ROUTE = "/v1/images/generations"
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
SIZE = re.compile(r"[0-9]{1,5}x[0-9]{1,5}")


def run_draw(arguments: argparse.Namespace, source: AnswerSource) -> int:
    """Draw, write the file, say what was drawn; returns the exit code."""
    began = time.monotonic()
    body = draw_body(arguments)
    name = source.choose(IMAGES, arguments.name)
    streams = {"stream": True, "progress": True} if source.is_ours else {}
    answer: Mapping[str, Any] = {}
    with new_file(arguments.out) as file, drawing_bar(arguments.steps) as show:
        for event in source.answers(ROUTE, {"model": name, **body, **streams}):
            if str(event.get("type", "")).endswith(".progress"):
                show(event)
            else:
                answer = event
        picture = picture_of(answer)
        file.write(picture)
    report = draw_report(arguments.out, name, answer, time.monotonic() - began)
    if arguments.json:
        print_json(report)
    else:
        show_picture(picture, arguments)
        sys.stdout.write(f"{summary_line(report)}\n")
    return DONE


def draw_body(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of the request that the flags say; standard ones by their standard names."""
    suffix = arguments.out.suffix.lower()
    if suffix not in FORMATS:
        raise VerbFailed(f"-o takes a file that ends with {', '.join(FORMATS)}", REFUSED)
    if arguments.size and not SIZE.fullmatch(arguments.size):
        raise VerbFailed(f"--size takes WIDTHxHEIGHT, not {arguments.size!r}", REFUSED)
    asked = {
        "size": arguments.size,
        "num_inference_steps": arguments.steps,
        "seed": arguments.seed,
        "tier": arguments.tier,
        "guidance_scale": arguments.guidance,
        "negative_prompt": arguments.negative,
        "output_format": FORMATS[suffix] if suffix != ".png" else None,
    }
    given = {field: value for field, value in asked.items() if value is not None}
    more = dict(map(named_value, arguments.parameter))
    return {"prompt": arguments.prompt, "response_format": "b64_json", **given, **more}


def picture_of(answer: Mapping[str, Any]) -> bytes:
    """The file in the last event of a stream, or in an answer without one."""
    data = answer.get("data")
    held = data[0] if isinstance(data, list) and data else answer
    text = held.get("b64_json") if isinstance(held, Mapping) else None
    try:
        picture = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except binascii.Error:
        picture = b""
    if not picture:
        raise VerbFailed("the server's answer has no picture in it", NO_SERVER)
    return picture


def draw_report(
    out: Path, name: str, answer: Mapping[str, Any], seconds: float
) -> dict[str, object]:
    data = answer.get("data")
    first = data[0] if isinstance(data, list) and isinstance(data[0], Mapping) else {}
    fields = ("size", "seed", "num_inference_steps", "tier", "precision", "timings")
    found = {name: value for name in fields if (value := {**first, **answer}.get(name)) is not None}
    return {"file": str(out), "model": name, **found, "seconds": round(seconds, 3)}


def summary_line(report: Mapping[str, Any]) -> str:
    words = {"size": "{}", "num_inference_steps": "{} steps", "seed": "seed {}", "tier": "{}"}
    words["seconds"] = "{:.2f} s"
    said = [plain(form.format(report[name])) for name, form in words.items() if name in report]
    return f"{report['file']}: {', '.join(said)}"


@contextmanager
def drawing_bar(steps: int | None) -> Iterator[Any]:
    """A function that shows a progress event on stderr, where that is a terminal."""
    from tqdm import tqdm

    bar = tqdm(total=steps, unit="step", leave=False, disable=not sys.stderr.isatty())

    def show(event: Mapping[str, Any]) -> None:
        step, total = event.get("step"), event.get("steps")
        if isinstance(step, int) and isinstance(total, int):
            bar.total = total
            bar.update(step - bar.n)

    with bar:
        yield show


def show_picture(picture: bytes, arguments: argparse.Namespace) -> None:
    """Show it in the terminal, if stdout is one that can. No-op otherwise."""
    if not sys.stdout.isatty() or arguments.show == "never":
        return
    chosen = arguments.show
    protocol = picture_protocol(arguments.environ) if chosen == "auto" else chosen
    if protocol:
        try:
            codes = picture_codes(picture, protocol)
        except (OSError, ValueError):  # Pillow's, for a file that it does not read
            return
        sys.stdout.write(codes)
