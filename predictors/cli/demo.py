"""The verb `demo`: start the server, draw two prompts over V2, describe them over chat, stop.

It is a client like any other, over HTTP only.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import httpx

from predictors.cli.child import ServerFailed, ServerProcess
from predictors.cli.outcomes import DONE, FAILED, VerbFailed, print_json

IMAGE_MODEL, CHAT_MODEL = "flux", "qwen-vl"
MODELS = {
    IMAGE_MODEL: Path("checkpoints/shapes-flux"),
    CHAT_MODEL: Path("checkpoints/shapes-qwen-vl"),
}
PROMPTS = (
    "a large red circle to the left of a small blue square on a white background",
    "a small yellow star above a large green triangle on a black background",
)
QUESTION = "Describe this picture."
SEED = 7
START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 120.0


def run_demo(
    prompts: Sequence[str] = PROMPTS,
    out: Path = Path("out"),
    loras: Mapping[str, Path] = MappingProxyType({}),
    *,
    as_json: bool = False,
) -> int:
    """Write `out/1.png`, `out/2.png` ... and `out/server.log`, drawn with all `loras`, and say what
    happens as it does; `as_json` prints a report at the end, and the rest goes to standard error.

    Returns the exit code. Raises `VerbFailed` if the server or a request fails.
    """
    say = Teller(sys.stderr if as_json else sys.stdout)
    try:
        report = serve_and_ask(prompts, out, loras, say)
    except (ServerFailed, httpx.HTTPError, OSError) as error:
        raise VerbFailed(f"the demo failed: {error}", FAILED) from error
    say(f"stopped cleanly after {report['seconds']:.1f} s")
    if as_json:
        print_json(report)
    return DONE


class Teller:
    """Prints to one stream without buffering, so that progress and streamed text show at once."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __call__(self, text: str, end: str = "\n") -> None:
        print(text, end=end, flush=True, file=self._stream)


def serve_and_ask(
    prompts: Sequence[str], out: Path, loras: Mapping[str, Path], say: Teller
) -> dict[str, Any]:
    """Start the server, draw and describe, stop it; returns the report of all that. Raises
    `ServerFailed`, `httpx.HTTPError` and `OSError`."""
    started = time.monotonic()
    given = {f"{IMAGE_MODEL}:{name}": path for name, path in loras.items()}
    with ServerProcess(MODELS, out / "server.log", given) as server:
        say(f"starting {' and '.join(MODELS)} on {server.url} (log: {out / 'server.log'})")
        server.wait_ready(START_TIMEOUT_S, lambda what: say(f"  warm: {what}"))
        ready_s = time.monotonic() - started
        say(f"ready after {ready_s:.1f} s\n")
        with httpx.Client(base_url=server.url, timeout=ANSWER_TIMEOUT_S) as client:
            drawn, files = draw_rows(client, prompts, out, list(loras), say)
            pictures = [
                {"prompt": prompt, "file": str(picture), **describe(client, prompt, picture, say)}
                for prompt, picture in zip(prompts, files, strict=True)
            ]
    return {
        "models": list(MODELS),
        "log": str(out / "server.log"),
        "ready_seconds": round(ready_s, 3),
        "drawn": drawn,
        "pictures": pictures,
        "seconds": round(time.monotonic() - started, 3),
    }


def draw_rows(
    client: httpx.Client, prompts: Sequence[str], out: Path, loras: Sequence[str], say: Teller
) -> tuple[dict[str, Any], list[Path]]:
    """Draw all prompts with one V2 request. Each row is a job, and they share steps. Returns how
    they were drawn, and the files."""
    rows = len(prompts)
    body: dict[str, object] = {
        "inputs": [
            {"name": "prompt", "datatype": "BYTES", "shape": [rows], "data": list(prompts)},
            {"name": "seed", "datatype": "INT64", "shape": [rows], "data": [SEED] * rows},
        ]
    }
    if loras:
        body["parameters"] = {"loras": json.dumps([{"name": name} for name in loras])}
    started = time.monotonic()
    response = client.post(f"/v2/models/{IMAGE_MODEL}/infer", json=body)
    seconds = time.monotonic() - started
    answer = raise_for_error(response).json()
    used = answer["parameters"]
    say(
        f"one V2 request, {rows} pictures of {used['width']}x{used['height']}, "
        f"{used['num_inference_steps']} steps, {used['precision']}: {seconds:.2f} s"
    )
    images = next(tensor["data"] for tensor in answer["outputs"] if tensor["name"] == "image")
    files = [save(out / f"{row}.png", image) for row, image in enumerate(images, start=1)]
    return {**used, "seconds": round(seconds, 3)}, files


def save(path: Path, image: str) -> Path:
    path.write_bytes(base64.b64decode(image))
    return path


def describe(client: httpx.Client, prompt: str, picture: Path, say: Teller) -> dict[str, Any]:
    """Caption a picture; returns the caption, and the seconds that it took."""
    say(f"\nprompt   {prompt}\npicture  {picture}")
    say("caption  ", end="")
    started, caption = time.monotonic(), ""
    for text in answers(client, picture.read_bytes()):
        say(text, end="")
        caption += text
    seconds = time.monotonic() - started
    say(f"  ({seconds:.2f} s)")
    return {"caption": caption, "caption_seconds": round(seconds, 3)}


def answers(client: httpx.Client, png: bytes) -> Iterator[str]:
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    body = {
        "model": CHAT_MODEL,
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "temperature": 0,
    }
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            response.read()
        for line in raise_for_error(response).iter_lines():
            event = line.removeprefix("data: ")
            if event != line and event != "[DONE]":
                yield from chunk_texts(json.loads(event))


def chunk_texts(chunk: dict[str, object]) -> Iterator[str]:
    if "error" in chunk:
        raise httpx.HTTPError(f"the stream broke off: {chunk['error']}")
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        yield choice["delta"].get("content") or ""


def raise_for_error(response: httpx.Response) -> httpx.Response:
    """The response; raises `httpx.HTTPError` with the server's message if it is an error."""
    if response.is_error:
        raise httpx.HTTPError(
            f"{response.url.path} answered {response.status_code}: {response.text[:300]}"
        )
    return response
