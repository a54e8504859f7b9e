"""An agent with a tool: the model asks for a count, Python counts, the model says the number."""

import base64
import io
import json
import os
from typing import Any

from openai import OpenAI
from PIL import Image, ImageDraw

url = os.environ.get("PREDICTORS_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{url}/v1", api_key="none")
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "count_shapes",
            "description": "Counts the shapes in the picture.",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]


def count_shapes(png: bytes) -> int:
    """How many connected regions of at least 40 pixels are not of the colour of the corner."""
    picture = Image.open(io.BytesIO(png)).convert("L")
    ground = picture.getpixel((0, 0))
    assert isinstance(ground, int)
    figures = picture.point([255 * (abs(level - ground) > 60) for level in range(256)])
    count = 0
    while box := figures.getbbox():
        x = next(x for x in range(box[0], box[2]) if figures.getpixel((x, box[1])) == 255)
        before = figures.histogram()[255]
        ImageDraw.floodfill(figures, (x, box[1]), 0)
        count += before - figures.histogram()[255] >= 40
    return count


drawn = client.images.generate(
    model="flux",
    prompt="a large red circle left of a small blue square on a white background",
    extra_body={"seed": 1},
)
assert drawn.data and drawn.data[0].b64_json
png = base64.b64decode(drawn.data[0].b64_json)
picture = {"url": f"data:image/png;base64,{drawn.data[0].b64_json}"}
question = {"type": "text", "text": "How many shapes are there?"}
content = [{"type": "image_url", "image_url": picture}, question]
messages: list[Any] = [{"role": "user", "content": content}]

choice: Any = "required"  # the first turn is a call; after it the model may speak
for _ in range(4):
    reply = client.chat.completions.create(
        model="qwen-vl", messages=messages, tools=TOOLS, tool_choice=choice, max_tokens=64
    ).choices[0]
    messages.append(reply.message.model_dump(exclude_none=True))
    if not reply.message.tool_calls:
        print(reply.message.content)
        break
    for call in reply.message.tool_calls:
        assert call.type == "function"
        result = {"count_shapes": count_shapes}[call.function.name](png)
        print(f"{call.function.name}({json.loads(call.function.arguments)}) = {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
    choice = "auto"
