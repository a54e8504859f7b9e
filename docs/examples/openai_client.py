"""OpenAI's client: draws a picture with previews, then streams a description of it."""

import base64
import os
from pathlib import Path

from openai import OpenAI

url = os.environ.get("PREDICTORS_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{url}/v1", api_key="none")

events = client.images.generate(
    model="flux",
    prompt="a large red circle on a white background",
    stream=True,
    partial_images=2,
    extra_body={"seed": 7},
)
for event in events:
    if event.type == "image_generation.partial_image":
        print(f"preview {event.partial_image_index}: {len(event.b64_json)} characters of base64")
    elif event.type == "image_generation.completed":
        Path("circle.png").write_bytes(base64.b64decode(event.b64_json))

picture = base64.b64encode(Path("circle.png").read_bytes()).decode()
words = client.chat.completions.create(
    model="qwen-vl",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                {"type": "text", "text": "Describe this picture."},
            ],
        }
    ],
    stream=True,
)
for chunk in words:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
