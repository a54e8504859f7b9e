"""Draws 100 prompts, 16 at a time, with a progress bar, and waits as long as the server asks."""

import asyncio
import base64
import os
from itertools import product
from pathlib import Path

from openai import AsyncOpenAI
from tqdm.asyncio import tqdm

COLOURS = ["red", "green", "blue", "yellow", "cyan"]
KINDS = ["circle", "square", "triangle", "star", "diamond"]
PROMPTS = [
    f"a {size} {colour} {kind} on a {ground} background"
    for size, colour, kind, ground in product(
        ["large", "small"], COLOURS, KINDS, ["white", "black"]
    )
]

url = os.environ.get("PREDICTORS_URL", "http://127.0.0.1:8080")
# the client repeats a request that a full queue refused (503), after its Retry-After
client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=8)
at_once = asyncio.Semaphore(16)


async def draw(number: int, prompt: str) -> None:
    async with at_once:
        drawn = await client.images.generate(
            model="flux",
            prompt=prompt,
            size="64x64",
            extra_body={"seed": number, "num_inference_steps": 4},
        )
    assert drawn.data and drawn.data[0].b64_json
    Path(f"batch/{number:03}.png").write_bytes(base64.b64decode(drawn.data[0].b64_json))


async def main() -> None:
    Path("batch").mkdir(exist_ok=True)
    await tqdm.gather(*(draw(number, prompt) for number, prompt in enumerate(PROMPTS)))


asyncio.run(main())
