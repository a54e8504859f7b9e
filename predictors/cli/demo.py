"""The verb `demo`: start the server, draw two prompts over V2, describe them over chat, stop.

It is a client like any other, over HTTP only.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import httpx

from predictors.cli.child import ServerFailed, ServerProcess

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
) -> int:
    """Write `out/1.png`, `out/2.png` ... and `out/server.log`, drawn with all `loras`; returns the
    exit code."""
    started = time.monotonic()
    try:
        given = {f"{IMAGE_MODEL}:{name}": path for name, path in loras.items()}
        with ServerProcess(MODELS, out / "server.log", given) as server:
            say(f"starting {' and '.join(MODELS)} on {server.url} (log: {out / 'server.log'})")
            server.wait_ready(START_TIMEOUT_S, lambda what: say(f"  warm: {what}"))
            say(f"ready after {time.monotonic() - started:.1f} s\n")
            with httpx.Client(base_url=server.url, timeout=ANSWER_TIMEOUT_S) as client:
                for prompt, picture in zip(
                    prompts, draw_rows(client, prompts, out, list(loras)), strict=True
                ):
                    describe(client, prompt, picture)
    except (ServerFailed, httpx.HTTPError, OSError) as error:
        say(f"the demo failed: {error}")
        return 1
    say(f"stopped cleanly after {time.monotonic() - started:.1f} s")
    return 0


def draw_rows(
    client: httpx.Client, prompts: Sequence[str], out: Path, loras: Sequence[str] = ()
) -> list[Path]:
    """Draw all prompts with one V2 request. Each row is a job, and they share steps."""
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
    return [save(out / f"{row}.png", image) for row, image in enumerate(images, start=1)]


def save(path: Path, image: str) -> Path:
    path.write_bytes(base64.b64decode(image))
    return path


def describe(client: httpx.Client, prompt: str, picture: Path) -> None:
    say(f"\nprompt   {prompt}\npicture  {picture}")
    say("caption  ", end="")
    started = time.monotonic()
    for text in answers(client, picture.read_bytes()):
        say(text, end="")
    say(f"  ({time.monotonic() - started:.2f} s)")


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


def say(text: str, end: str = "\n") -> None:
    """Print without buffering, so that progress and streamed text are shown at once."""
    print(text, end=end, flush=True)
