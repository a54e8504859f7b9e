"""A conversation about one picture over several turns. The picture is read once and found again."""

import os
from typing import Any

from openai import OpenAI

url = os.environ.get("PREDICTORS_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{url}/v1", api_key="none")

drawn = client.images.generate(
    model="flux",
    prompt="a large red circle left of a small blue square on a white background",
    extra_body={"seed": 1},
)
assert drawn.data
picture = {"url": f"data:image/png;base64,{drawn.data[0].b64_json}"}
messages: list[Any] = []
QUESTIONS = ["Describe this picture.", "How many shapes are there?", "What colour is the circle?"]
for question in QUESTIONS:
    content: list[Any] = [{"type": "text", "text": question}]
    if not messages:
        content.insert(0, {"type": "image_url", "image_url": picture})
    messages.append({"role": "user", "content": content})
    answer = client.chat.completions.create(model="qwen-vl", messages=messages)
    said = answer.choices[0].message.content
    messages.append({"role": "assistant", "content": said})
    print(f"{question}  {said}")
