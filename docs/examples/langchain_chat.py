"""LangChain's ChatOpenAI: a picture in a message, streamed, and an answer as a pydantic model."""

import base64
import os
from pathlib import Path
from typing import Literal

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel, SecretStr

url = os.environ.get("PREDICTORS_URL", "http://127.0.0.1:8080")
drawn = OpenAI(base_url=f"{url}/v1", api_key="none").images.generate(
    model="flux", prompt="a large green triangle on a white background", extra_body={"seed": 3}
)
assert drawn.data and drawn.data[0].b64_json
Path("triangle.png").write_bytes(base64.b64decode(drawn.data[0].b64_json))

chat = ChatOpenAI(model="qwen-vl", base_url=f"{url}/v1", api_key=SecretStr("none"), temperature=0)


def about_the_picture(question: str) -> HumanMessage:
    picture = base64.b64encode(Path("triangle.png").read_bytes()).decode()
    return HumanMessage(
        content=[
            {"type": "image", "base64": picture, "mime_type": "image/png"},
            {"type": "text", "text": question},
        ]
    )


for piece in chat.stream([about_the_picture("Describe this picture.")]):
    print(piece.text, end="", flush=True)
print()


class Colour(BaseModel):
    """The colour of the shape in a picture."""

    colour: Literal["red", "green", "blue", "yellow"]


reader = chat.with_structured_output(Colour, method="json_schema")
print(reader.invoke([about_the_picture("What colour is the triangle?")]))
