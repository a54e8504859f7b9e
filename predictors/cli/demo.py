"""The demonstration: start the server, have two prompts drawn over V2 and the drawings described
over OpenAI chat, stop. A client like any other: knows HTTP, base64 and the terminal, and nothing
that a caller elsewhere would not know.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from predictors.cli.child import ServerFailed, ServerProcess

PAINTER, TELLER = "flux", "qwen-vl"
MODELS = {PAINTER: Path("checkpoints/shapes-flux"), TELLER: Path("checkpoints/shapes-qwen-vl")}
PROMPTS = (
    "a large red circle to the left of a small blue square on a white background",
    "a small yellow star above a large green triangle on a black background",
)
QUESTION = "Describe this picture."
SEED = 7
START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 120.0


def demo(prompts: Sequence[str] = PROMPTS, out: Path = Path("out")) -> int:
    """Run it and write `out/1.png`, `out/2.png` ... and the server's log; returns the exit code."""
    started = time.monotonic()
    try:
        with ServerProcess(MODELS, out / "server.log") as server:
            say(f"starting {' and '.join(MODELS)} on {server.url} (log: {out / 'server.log'})")
            server.wait_ready(START_TIMEOUT_S, lambda what: say(f"  warm: {what}"))
            say(f"ready after {time.monotonic() - started:.1f} s\n")
            with httpx.Client(base_url=server.url, timeout=ANSWER_TIMEOUT_S) as client:
                for prompt, picture in zip(prompts, draw(client, prompts, out), strict=True):
                    describe(client, prompt, picture)
    except (ServerFailed, httpx.HTTPError, OSError) as error:
        say(f"the demo failed: {error}")
        return 1
    say(f"stopped cleanly after {time.monotonic() - started:.1f} s")
    return 0


def draw(client: httpx.Client, prompts: Sequence[str], out: Path) -> list[Path]:
    """One V2 request for all prompts; each row is a job, and they share the engine's steps."""
    rows = len(prompts)
    body = {
        "inputs": [
            {"name": "prompt", "datatype": "BYTES", "shape": [rows], "data": list(prompts)},
            {"name": "seed", "datatype": "INT64", "shape": [rows], "data": [SEED] * rows},
        ]
    }
    started = time.monotonic()
    response = client.post(f"/v2/models/{PAINTER}/infer", json=body)
    seconds = time.monotonic() - started
    answer = checked(response).json()
    told = answer["parameters"]
    say(
        f"one V2 request, {rows} pictures of {told['width']}x{told['height']}, "
        f"{told['num_inference_steps']} steps, {told['precision']}: {seconds:.2f} s"
    )
    images = next(tensor["data"] for tensor in answer["outputs"] if tensor["name"] == "image")
    return [save(out / f"{row}.png", image) for row, image in enumerate(images, start=1)]


def save(path: Path, image: str) -> Path:
    """Write one base64 picture and return where it lies."""
    path.write_bytes(base64.b64decode(image))
    return path


def describe(client: httpx.Client, prompt: str, picture: Path) -> None:
    """Send a picture over OpenAI chat and print the answer as it comes."""
    say(f"\nprompt   {prompt}\npicture  {picture}")
    say("caption  ", end="")
    started = time.monotonic()
    for piece in answers(client, picture.read_bytes()):
        say(piece, end="")
    say(f"  ({time.monotonic() - started:.2f} s)")


def answers(client: httpx.Client, png: bytes) -> Iterator[str]:
    """The pieces of the description, as the server sends them."""
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    body = {
        "model": TELLER,
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "temperature": 0,
    }
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            response.read()
        for line in checked(response).iter_lines():
            event = line.removeprefix("data: ")
            if event != line and event != "[DONE]":
                yield from pieces(json.loads(event))


def pieces(chunk: dict[str, object]) -> Iterator[str]:
    """The text in one chunk of a streamed chat."""
    if "error" in chunk:
        raise httpx.HTTPError(f"the stream broke off: {chunk['error']}")
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        yield choice["delta"].get("content") or ""


def checked(response: httpx.Response) -> httpx.Response:
    """The response, or an error that shows what the server said."""
    if response.is_error:
        raise httpx.HTTPError(
            f"{response.url.path} answered {response.status_code}: {response.text[:300]}"
        )
    return response


def say(text: str, end: str = "\n") -> None:
    """Print at once, so that progress and streamed text are seen when they come."""
    print(text, end=end, flush=True)
