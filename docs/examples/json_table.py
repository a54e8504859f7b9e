"""Reads pictures into the rows of a table: each answer is valid JSON of a schema, always."""

import csv
import json
import os
import sys
from typing import Any

from openai import OpenAI

url = os.environ.get("PREDICTORS_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{url}/v1", api_key="none")

FIGURE = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["circle", "square", "triangle", "star", "diamond", "cross"]},
        "colour": {"enum": ["red", "green", "blue", "yellow", "cyan", "magenta", "black", "white"]},
        "size": {"enum": ["large", "small"]},
    },
    "required": ["kind", "colour", "size"],
    "additionalProperties": False,
}
SCENE = {
    "type": "object",
    "properties": {
        "shapes": {"type": "array", "items": FIGURE, "minItems": 1, "maxItems": 2},
        "ground": {"enum": ["white", "black", "gray"]},
    },
    "required": ["shapes", "ground"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "scene", "schema": SCENE}}


def read(picture: str) -> dict[str, Any]:
    """The scene of a picture, given as base64."""
    content: Any = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": "List the shapes as JSON."},
    ]
    answer = client.chat.completions.create(
        model="qwen-vl", messages=[{"role": "user", "content": content}], response_format=FORMAT
    )
    scene: dict[str, Any] = json.loads(answer.choices[0].message.content or "")
    return scene


table = csv.DictWriter(sys.stdout, ["picture", "ground", "kind", "colour", "size"])
table.writeheader()
PROMPTS = [
    "a large red circle on a white background",
    "a small blue square on a black background",
    "a large green triangle on a gray background",
]
for number, prompt in enumerate(PROMPTS, 1):
    drawn = client.images.generate(model="flux", prompt=prompt, extra_body={"seed": number})
    assert drawn.data and drawn.data[0].b64_json
    scene = read(drawn.data[0].b64_json)
    for figure in scene["shapes"]:
        table.writerow({"picture": number, "ground": scene["ground"], **figure})
