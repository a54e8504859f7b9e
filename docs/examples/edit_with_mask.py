"""Redraws the right half of a picture and keeps the left one: a mask is black where it keeps."""

import base64
import io
import os
from pathlib import Path

from openai import OpenAI
from PIL import Image

url = os.environ.get("PREDICTORS_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{url}/v1", api_key="none")

drawn = client.images.generate(
    model="flux",
    prompt="a small red circle left of a small blue square on a white background",
    extra_body={"seed": 1},
)
assert drawn.data and drawn.data[0].b64_json
source = base64.b64decode(drawn.data[0].b64_json)
Path("before.png").write_bytes(source)

width, height = Image.open(io.BytesIO(source)).size
mask = Image.new("L", (width, height), "black")
mask.paste("white", (width // 2, 0, width, height))
mask.save("mask.png")

edited = client.images.edit(
    model="flux",
    prompt="a small red circle left of a small green triangle on a white background",
    image=Path("before.png"),
    mask=Path("mask.png"),
    extra_body={"strength": 1, "seed": 2},
)
assert edited.data and edited.data[0].b64_json
Path("after.png").write_bytes(base64.b64decode(edited.data[0].b64_json))
print("before.png, mask.png, after.png")
