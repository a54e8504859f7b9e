"""Four requests at once, each with other adapters: none, one, the other, both. Makes one sheet.

The server must have them: --lora flux:all-cyan=checkpoints/shapes-loras/all-cyan
--lora flux:gray-ground=checkpoints/shapes-loras/gray-ground
"""

import asyncio
import base64
import io
import os
from typing import Any

from openai import AsyncOpenAI
from PIL import Image

url = os.environ.get("PREDICTORS_URL", "http://127.0.0.1:8080")
client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
CYAN, GRAY = {"name": "all-cyan", "scale": 1}, {"name": "gray-ground", "scale": 1}


async def draw(loras: list[dict[str, Any]]) -> Image.Image:
    drawn = await client.images.generate(
        model="flux",
        prompt="a large red circle on a white background",
        extra_body={"seed": 7, "loras": loras},
    )
    assert drawn.data and drawn.data[0].b64_json
    return Image.open(io.BytesIO(base64.b64decode(drawn.data[0].b64_json)))


async def main() -> None:
    pictures = await asyncio.gather(draw([]), draw([CYAN]), draw([GRAY]), draw([CYAN, GRAY]))
    side = pictures[0].width
    sheet = Image.new("RGB", (side * len(pictures), side))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number * side, 0))
    sheet.save("adapters.png")
    print("adapters.png: none, all-cyan, gray-ground, both")


asyncio.run(main())
