"""One request by every protocol and client: the same picture bytes, the same words."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.http as triton
from PIL import Image

from tests.http.echo import PATIENCE_S, Running

PROMPTS = ["a large red circle on a white background", "a small blue star on a gray background"]
PARAMETERS = {"seed": 11, "guidance_scale": 3.5, "num_inference_steps": 4}
QUESTION = "Describe this picture."


def left_half() -> bytes:
    """A mask of the pictures' size whose left half is white."""
    mask, file = Image.new("L", (128, 128)), BytesIO()
    mask.paste(255, (0, 0, 64, 128))
    mask.save(file, "PNG")
    return file.getvalue()


MASK = left_half()


def prompt_tensor(*prompts: str) -> dict[str, Any]:
    return {"name": "prompt", "datatype": "BYTES", "shape": [len(prompts)], "data": list(prompts)}


@pytest.fixture(scope="session")
def over_rest(product: Running) -> dict[str, Any]:
    """Pictures and seeds by plain V2 JSON."""
    with product.client() as client:
        body = {"inputs": [prompt_tensor(*PROMPTS)], "parameters": PARAMETERS}
        reply = client.post("/v2/models/flux/infer", json=body)
        assert reply.status_code == 200, reply.text
        outputs = {o["name"]: o for o in reply.json()["outputs"]}
        assert outputs["image"]["parameters"] == {"content_type": "image/png", "encoding": "base64"}
        return {
            "image": [base64.b64decode(x) for x in outputs["image"]["data"]],
            "seed": outputs["seed"]["data"],
            "parameters": reply.json()["parameters"],
        }


@cache
def over_grpc(target: str) -> dict[str, Any]:
    script = Path(__file__).with_name("ask_grpc.py")
    done = subprocess.run(
        [sys.executable, str(script), target, MASK.hex(), *PROMPTS],
        capture_output=True, text=True, timeout=PATIENCE_S * 3, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_v2_json_returns_pictures_of_the_asked_size_and_what_was_done(
    over_rest: dict[str, Any],
) -> None:
    for file in over_rest["image"]:
        picture = Image.open(BytesIO(file))
        assert (picture.format, picture.size, picture.mode) == ("PNG", (128, 128), "RGB")
    assert over_rest["seed"] == [11, 12]
    told = over_rest["parameters"]
    assert {k: told[k] for k in ("num_inference_steps", "width", "height", "precision")} == {
        "num_inference_steps": 4, "width": 128, "height": 128, "precision": "float32",
    }  # fmt: skip
    assert told["compute_ms"] >= 1
    assert told["queue_ms"] >= 0


def test_grpc_with_a_double_gives_the_bytes_that_rest_gives(
    product: Running, over_rest: dict[str, Any]
) -> None:
    found = over_grpc(product.grpc_target)
    assert [bytes.fromhex(x) for x in found["image"]] == over_rest["image"]
    assert found["seed"] == [11, 12]
    assert found["precision"] == "float32"
    inputs = [x["name"] for x in found["metadata"]["inputs"]]
    assert inputs == ["prompt", "negative_prompt", "seed", "image", "mask"]


def test_a_stream_over_grpc_ends_with_the_bytes_that_rest_gives(
    product: Running, over_rest: dict[str, Any]
) -> None:
    found = over_grpc(product.grpc_target)["streamed"]
    steps = [each for each in found["drawn"] if isinstance(each, int)]
    *previews, last = [each for each in found["drawn"] if isinstance(each, str)]
    assert steps == [1, 2, 3, 4]
    assert bytes.fromhex(last) == over_rest["image"][0]
    pictures = [Image.open(BytesIO(bytes.fromhex(each))) for each in previews]
    assert [(p.format, p.size) for p in pictures] == [("PNG", (128, 128))] * 2
    assert len({*previews, last}) == 3
    (failed,) = found["failed"]
    assert "unknown parameter 'nope'" in failed


def test_words_and_logprobs_stream_over_grpc_as_they_come_over_rest_and_chat(
    product: Running,
) -> None:
    found = over_grpc(product.grpc_target)["streamed"]
    asked = {"temperature": 0.0, "max_tokens": 12, "min_p": 0.05}
    asked |= {"logprobs": True, "top_logprobs": 2}
    with product.client() as client:
        parameters = asked | {"logit_bias": '{"5": -100}'}
        body = {"inputs": [prompt_tensor(PROMPTS[0])], "parameters": parameters}
        reply = client.post("/v2/models/qwen-vl/infer", json=body).json()
        messages = [{"role": "user", "content": PROMPTS[0]}]
        chat = asked | {"model": "qwen-vl", "messages": messages, "logit_bias": {"5": -100}}
        (choice,) = client.post("/v1/chat/completions", json=chat).json()["choices"]
    outputs = {o["name"]: o["data"][0] for o in reply["outputs"]}
    assert "".join(found["told"]) == outputs["text"]
    assert found["reason"] == outputs["finish_reason"]
    assert choice["message"]["content"] == outputs["text"]
    assert json.loads(outputs["logprobs"]) == choice["logprobs"]
    parts = [each for part in found["logprobs"] for each in part["content"]]
    assert parts == choice["logprobs"]["content"] != []
    assert len(found["told"]) > 1


def test_openais_stream_ends_with_the_bytes_that_rest_gives(
    product: Running, over_rest: dict[str, Any]
) -> None:
    with openai.OpenAI(base_url=f"{product.url}/v1", api_key="-", max_retries=0) as client:
        stream = client.images.generate(
            model="flux", prompt=PROMPTS[0], stream=True, partial_images=3, extra_body=PARAMETERS
        )
        *previews, last = list(stream)
    assert last.type == "image_generation.completed"
    assert base64.b64decode(last.b64_json) == over_rest["image"][0]
    assert [each.type for each in previews] == ["image_generation.partial_image"] * 3
    final = np.asarray(Image.open(BytesIO(over_rest["image"][0])), float)
    drawn = [Image.open(BytesIO(base64.b64decode(each.b64_json))) for each in previews]
    away = [float(np.abs(np.asarray(each, float) - final).mean()) for each in drawn]
    assert away == sorted(away, reverse=True)
    assert last.usage.output_tokens == 64
    assert last.to_dict()["seed"] == 11


@pytest.mark.parametrize("binary", [False, True])
def test_tritonclient_http_gives_the_bytes_that_rest_gives(
    product: Running, over_rest: dict[str, Any], binary: bool
) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{product.server.http_port}") as client:
        tensor = triton.InferInput("prompt", [2], "BYTES")
        tensor.set_data_from_numpy(
            np.array([p.encode() for p in PROMPTS], dtype=np.object_), binary_data=binary
        )
        wanted = [triton.InferRequestedOutput("image", binary_data=binary)]
        rows = client.infer("flux", [tensor], outputs=wanted, parameters=PARAMETERS).as_numpy(
            "image"
        )
    files = list(rows) if binary else [base64.b64decode(x) for x in rows]
    assert files == over_rest["image"]


def test_openai_gives_the_bytes_that_v2_gives(product: Running, over_rest: dict[str, Any]) -> None:
    with openai.OpenAI(base_url=f"{product.url}/openai/v1", api_key="x", max_retries=0) as client:
        reply = client.images.generate(
            model="flux", prompt=PROMPTS[0], response_format="b64_json", extra_body=PARAMETERS
        )
    assert reply.data is not None
    assert base64.b64decode(reply.data[0].b64_json or "") == over_rest["image"][0]


def test_an_edit_gives_the_same_bytes_on_every_protocol(
    product: Running, http: httpx.Client, over_rest: dict[str, Any]
) -> None:
    first = [bytes.fromhex(x) for x in over_grpc(product.grpc_target)["edited"]]
    pictures = over_rest["image"]
    assert not set(first) & set(pictures)
    parameters = PARAMETERS | {"strength": 0.5}
    inputs = [
        prompt_tensor(*PROMPTS[::-1]),
        prompt_tensor(*map(data_url, pictures)) | {"name": "image"},
        prompt_tensor(base64.b64encode(MASK).decode()) | {"name": "mask"},
    ]
    reply = http.post("/v2/models/flux/infer", json={"inputs": inputs, "parameters": parameters})
    assert reply.status_code == 200, reply.text
    image = next(o for o in reply.json()["outputs"] if o["name"] == "image")
    assert [base64.b64decode(x) for x in image["data"]] == first
    given = {"model": "flux", "prompt": PROMPTS[1]} | parameters
    with openai.OpenAI(base_url=f"{product.url}/v1", api_key="x", max_retries=0) as client:
        by_form = client.images.edit(
            image=pictures[0], mask=MASK, model="flux", prompt=PROMPTS[1], extra_body=parameters
        )
    assert by_form.data is not None
    assert base64.b64decode(by_form.data[0].b64_json or "") == first[0]
    in_json = {"images": [{"image_url": data_url(pictures[0])}], "mask": data_url(MASK)}
    answer = http.post("/v1/images/edits", json=given | in_json).json()
    assert base64.b64decode(answer["data"][0]["b64_json"]) == first[0]
    assert answer["strength"] == 0.5
    assert answer["usage"]["input_tokens_details"]["image_tokens"] == 64


def test_a_row_knows_nothing_of_its_neighbours(
    http: httpx.Client, over_rest: dict[str, Any]
) -> None:
    body = {"inputs": [prompt_tensor(PROMPTS[1])], "parameters": PARAMETERS | {"seed": 12}}
    reply = http.post("/v2/models/flux/infer", json=body).json()
    image = next(o for o in reply["outputs"] if o["name"] == "image")
    assert base64.b64decode(image["data"][0]) == over_rest["image"][1]


def test_the_same_picture_gets_the_same_words_on_every_protocol(
    product: Running, over_rest: dict[str, Any]
) -> None:
    texts = over_grpc(product.grpc_target)["text"]
    with openai.OpenAI(base_url=f"{product.url}/v1", api_key="x", max_retries=0) as client:
        for file, expected in zip(over_rest["image"], texts, strict=True):
            messages: Any = [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": data_url(file)}},
                {"type": "text", "text": QUESTION},
            ]}]  # fmt: skip
            asked: dict[str, Any] = {
                "model": "qwen-vl", "messages": messages, "temperature": 0.0, "max_tokens": 12,
            }  # fmt: skip
            whole = client.chat.completions.create(**asked)
            assert whole.choices[0].message.content == expected
            chunks = list(
                client.chat.completions.create(
                    **asked, stream=True, stream_options={"include_usage": True}
                )
            )
            streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert streamed == expected
            assert chunks[-1].usage == whole.usage
            assert http_text(product, file) == expected


def http_text(product: Running, file: bytes) -> str:
    with product.client() as client:
        image = {"name": "image", "datatype": "BYTES", "shape": [1],
                 "data": [base64.b64encode(file).decode()]}  # fmt: skip
        body = {"inputs": [prompt_tensor(QUESTION), image],
                "parameters": {"temperature": 0.0, "max_tokens": 12}}  # fmt: skip
        reply = client.post("/v2/models/qwen-vl/infer", json=body)
        assert reply.status_code == 200, reply.text
        return str(next(o for o in reply.json()["outputs"] if o["name"] == "text")["data"][0])


def data_url(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


def test_both_models_are_listed(product: Running) -> None:
    with openai.OpenAI(base_url=f"{product.url}/v1", api_key="x", max_retries=0) as client:
        assert sorted(m.id for m in client.models.list()) == ["flux", "qwen-vl"]


@pytest.mark.parametrize(
    ("format_name", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")]
)
def test_raw_files_come_back_without_base64(
    http: httpx.Client, format_name: str, magic: bytes
) -> None:
    body = {
        "inputs": [prompt_tensor(PROMPTS[0])],
        "parameters": PARAMETERS | {"output_format": format_name, "binary_data_output": True},
    }
    reply = http.post("/v2/models/flux/infer", json=body)
    split = int(reply.headers["inference-header-content-length"])
    head = json.loads(reply.content[:split])
    image = next(o for o in head["outputs"] if o["name"] == "image")
    assert image["parameters"]["content_type"] == f"image/{format_name}"
    file = reply.content[split + 4 : split + image["parameters"]["binary_data_size"]]
    assert file.startswith(magic)
    assert Image.open(BytesIO(file)).size == (128, 128)
