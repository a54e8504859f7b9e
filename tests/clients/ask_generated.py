"""Asks a server through the client that openapi-python-client made of its document.

Run in a folder that has it as the package `generated`; prints JSON. Its types are checked too.
"""

from __future__ import annotations

import base64
import json
import sys
from http import HTTPStatus

import httpx
from generated.api.pictures import openai_images
from generated.api.text import openai_chat
from generated.api.v2 import infer_flux
from generated.client import Client
from generated.models.chat_answer import ChatAnswer
from generated.models.flux_images import FluxImages
from generated.models.flux_infer import FluxInfer
from generated.models.infer_answer import InferAnswer
from generated.models.open_ai_error import OpenAIError
from generated.models.pictures_answer import PicturesAnswer
from generated.models.qwen_vl_chat import QwenVlChat


def main(url: str) -> dict[str, object]:
    client = Client(base_url=url, timeout=httpx.Timeout(300.0))
    words = {"model": "qwen-vl", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    said = openai_chat.sync(client=client, body=QwenVlChat.from_dict(words))
    assert isinstance(said, ChatAnswer)
    drawing = {"model": "flux", "prompt": "a red circle", "num_inference_steps": 2, "seed": 7}
    drawn = openai_images.sync(client=client, body=FluxImages.from_dict(drawing))
    assert isinstance(drawn, PicturesAnswer)
    picture = drawn.data[0]
    assert isinstance(picture.b64_json, str)
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a red circle"]}
    asked = {"inputs": [tensor], "parameters": {"num_inference_steps": 2, "seed": 7}}
    inferred = infer_flux.sync(client=client, body=FluxInfer.from_dict(asked))
    assert isinstance(inferred, InferAnswer)
    wrong = openai_chat.sync_detailed(
        client=client, body=QwenVlChat.from_dict({**words, "temperature": 3})
    )
    assert wrong.status_code is HTTPStatus.BAD_REQUEST
    assert isinstance(wrong.parsed, OpenAIError)
    outputs: list[str] = [output.name for output in inferred.outputs]
    return {
        "tokens": said.usage.completion_tokens,
        "finished": said.choices[0].finish_reason,
        "file": base64.b64decode(picture.b64_json)[:8].hex(),
        "seed": picture.seed,
        "outputs": outputs,
        "error": wrong.parsed.error.message,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])) + "\n")
