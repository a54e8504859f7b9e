"""`/openapi.json` and V2 metadata describe the models that are served and what they refuse, and
both models answer bodies as clients send them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.http.echo import Running, png
from tests.product.conftest import served_models

CHAT = {"model": "qwen-vl", "messages": [{"role": "user", "content": "hi"}]}
ASK = {"model": "qwen-vl", "input": "hi", "max_output_tokens": 1}
DRAW = {"model": "flux", "prompt": "a"}
PIXELS = "data:image/png;base64," + base64.b64encode(png(size=(64, 64))).decode()
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with served_models() as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    answer = http.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.content) < 300_000
    found: dict[str, Any] = answer.json()
    return found


def body_validator(document: dict[str, Any], path: str) -> Draft202012Validator:
    """A validator of the bodies of one route."""
    content = document["paths"][path]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"] | {"components": document["components"]}
    return Draft202012Validator(schema)


def infer(prompt: str = "a", **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [prompt]}
    return {"inputs": [tensor], "parameters": parameters}


def with_input(more: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    body = infer(max_tokens=1) if not others else infer()
    return body | {"inputs": [body["inputs"][0] | more, *others]}


SEED = {"name": "seed", "datatype": "INT64", "shape": [1], "data": [1]}


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_the_document_is_made_once_and_the_same_bytes_again(http: httpx.Client) -> None:
    assert http.get("/openapi.json").content == http.get("/openapi.json").content


def test_every_path_of_the_document_is_a_route(
    document: dict[str, Any], http: httpx.Client
) -> None:
    values = {"{model}": "flux", "{file}": "x", "{version}": "1"}
    for path, item in document["paths"].items():
        given = path
        for name, value in values.items():
            given = given.replace(name, value)
        for method in item.keys() & {"get", "post", "delete"}:
            answer = http.request(method.upper(), given, headers={"accept": "*/*"})
            assert answer.status_code != 405, (method, path)
            expected = item[method]["responses"].keys() | {"307" if path[-1] == "/" else ""}
            assert str(answer.status_code) in expected, (method, path, answer.text)
            assert b"there is no route" not in answer.content[:200], (method, path)


def test_a_name_in_a_path_may_be_unknown(document: dict[str, Any], http: httpx.Client) -> None:
    for path, item in document["paths"].items():
        if "{" in path:
            given = re.sub(r"{[a-z_]+}", "nothing", path)
            for method in item.keys() & {"get", "post", "delete"}:
                turned_off = "/repository/" in path
                status = http.request(method.upper(), given).status_code
                assert status == (501 if turned_off else 404), path
                assert {"404", str(status)} <= item[method]["responses"].keys(), path


TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("/v2/repository/index", {}),
    ("/v2/repository/index", {"ready": True}),
    ("/v1/images/generations", DRAW),
    ("/v1/images/generations", DRAW | {"n": 1, "size": "64x64", "quality": "high", "seed": -1}),
    ("/v1/images/generations", DRAW | {"tier": "lossless", "style": None, "drop_params": True}),
    ("/v1/images/generations", DRAW | {"width": 64, "height": 64, "num_inference_steps": 1}),
    ("/v1/images/edits", DRAW | {"image": PIXELS, "num_inference_steps": 1}),
    ("/v1/images/edits", DRAW | {"images": [{"image_url": PIXELS}], "num_inference_steps": 1}),
    ("/v1/images/edits", DRAW | {"image": [PIXELS], "mask": PIXELS, "strength": 0}),
    ("/v1/chat/completions", CHAT | {"max_tokens": 1}),
    ("/v1/chat/completions", CHAT | {"max_tokens": 1, "temperature": 0, "top_p": 1, "n": 1}),
    ("/v1/chat/completions", CHAT | {"max_tokens": 1, "best_of": 1, "features": {"a": False}}),
    ("/v1/chat/completions", CHAT | {"max_tokens": 1, "stop": ["a"], "chat_id": "x"}),
    ("/v1/responses", ASK | {"instructions": "b", "metadata": {"a": "b"}, "store": True}),
    ("/v1/responses", ASK | {"input": [{"role": "user", "content": "a"}, {"type": "reasoning"}]}),
    ("/v1/responses", ASK | {"text": {"format": {"type": "text"}}, "temperature": 0, "tools": []}),
    ("/v1/completions", {"model": "qwen-vl", "prompt": ["a", [1, 2]], "max_tokens": 1, "n": 2}),
    ("/v1/completions", {"model": "qwen-vl", "prompt": [1, 2], "max_tokens": 1, "logprobs": 0}),
    ("/tokenize", {"prompt": "a", "return_token_strs": True}),
    ("/tokenize", {"model": "qwen-vl", "messages": CHAT["messages"]}),
    ("/detokenize", {"tokens": [1, 2]}),
    ("/detokenize", {"tokens": [1, 2], "model": None}),
    ("/v1/chat/completions", CHAT | {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}),
    ("/v1/chat/completions", CHAT | {"max_tokens": 1, "logit_bias": {"42": -100, "7": 0.5}}),
    ("/v1/chat/completions", CHAT | {"max_tokens": 2, "min_tokens": 2, "stop_token_ids": [3]}),
    (
        "/v1/chat/completions",
        CHAT | {"max_tokens": 1, "chat_template_kwargs": {"add_vision_id": True}},
    ),
    ("/v2/models/flux/infer", infer(width=64, height=64, num_inference_steps=1, seed=-1)),
    ("/v2/models/flux/infer", infer(width=64, height=64, num_inference_steps=1, tier="turbo")),
    ("/v2/models/qwen-vl/infer", infer(max_tokens=1, temperature=0.5, stop='["x"]')),
    (
        "/v2/models/qwen-vl/infer",
        infer(max_tokens=2, logprobs=True, top_logprobs=2, logit_bias='{"4": 1}', min_p=0.1),
    ),
    ("/v2/models/qwen-vl/infer", infer(max_tokens=1, content_type="str")),
    ("/v2/models/qwen-vl/infer", infer(max_tokens=1, timeout=0)),
    ("/v2/models/qwen-vl/infer", with_input({"parameters": None})),
    ("/v2/models/qwen-vl/infer", with_input({"parameters": {"content_type": "str"}})),
]
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("/v2/repository/index", {"ready": 1}),
    ("/v2/repository/index", {"state": "READY"}),
    ("/v1/images/generations", DRAW | {"model": "other"}),
    ("/v1/images/generations", {"model": "flux"}),
    ("/v1/images/generations", DRAW | {"stepz": 4}),
    ("/v1/images/generations", DRAW | {"width": 60}),
    ("/v1/images/generations", DRAW | {"width": 272}),
    ("/v1/images/generations", DRAW | {"num_inference_steps": 101}),
    ("/v1/images/generations", DRAW | {"tier": "high"}),
    ("/v1/images/generations", DRAW | {"quality": "turbo"}),
    ("/v1/images/generations", DRAW | {"size": "64*64"}),
    ("/v1/images/generations", DRAW | {"n": 17}),
    ("/v1/images/generations", DRAW | {"background": "transparent"}),
    ("/v1/images/edits", DRAW),
    ("/v1/images/edits", DRAW | {"image": PIXELS, "strength": 1.5}),
    ("/v1/images/edits", DRAW | {"image": PIXELS, "strenght": 1}),
    ("/v1/images/edits", DRAW | {"image": []}),
    ("/v1/images/edits", DRAW | {"images": [{"file_id": "x"}]}),
    ("/v1/images/edits", DRAW | {"image": PIXELS, "input_fidelity": "most"}),
    ("/v1/chat/completions", CHAT | {"temperature": 3}),
    ("/v1/chat/completions", CHAT | {"max_tokens": 0}),
    ("/v1/chat/completions", CHAT | {"best_of": 2}),
    ("/v1/chat/completions", CHAT | {"features": {"web_search": True}}),
    ("/v1/chat/completions", CHAT | {"messages": []}),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": [{"x": 1}]}]}),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "wizard", "content": "a"}]}),
    ("/v1/chat/completions", CHAT | {"colour": "red"}),
    ("/v1/responses", ASK | {"previous_response_id": "resp_1"}),
    ("/v1/responses", ASK | {"max_output_tokens": 0}),
    ("/v1/responses", ASK | {"input": [{"role": "user"}]}),
    ("/v1/responses", ASK | {"metadata": {"a": 1}}),
    ("/v1/responses", ASK | {"messages": []}),
    ("/v1/completions", {"model": "qwen-vl", "prompt": ""}),
    ("/v1/completions", {"model": "qwen-vl", "prompt": [[-1]]}),
    ("/v1/completions", {"model": "qwen-vl", "prompt": "a", "suffix": "b"}),
    ("/tokenize", {"prompt": 3}),
    ("/detokenize", {"tokens": "a"}),
    ("/detokenize", {}),
    ("/v1/chat/completions", CHAT | {"logprobs": 5}),
    ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 21}),
    ("/v1/chat/completions", CHAT | {"logit_bias": {"x": 1}}),
    ("/v1/chat/completions", CHAT | {"logit_bias": {"5": 101}}),
    ("/v1/chat/completions", CHAT | {"stop_token_ids": [-1]}),
    ("/v1/chat/completions", CHAT | {"chat_template_kwargs": []}),
    ("/v1/chat/completions", CHAT | {"prompt_logprobs": 0}),
    ("/v2/models/flux/infer", infer(width=60)),
    ("/v2/models/flux/infer", infer(colour="red")),
    ("/v2/models/flux/infer", infer(tier="high")),
    ("/v2/models/flux/infer", infer(seed=-2)),
    ("/v2/models/qwen-vl/infer", infer(top_p=0)),
    ("/v2/models/qwen-vl/infer", infer(detail="most")),
    ("/v2/models/qwen-vl/infer", infer(min_p=1.5)),
    ("/v2/models/qwen-vl/infer", infer(logprobs=True, top_logprobs=21)),
    ("/v2/models/qwen-vl/infer", infer(logit_bias=5)),
    ("/v2/models/qwen-vl/infer", infer(max_pixels=783)),
    ("/v1/chat/completions", CHAT | {"max_pixels": 783}),
    ("/v2/models/qwen-vl/infer", {"inputs": []}),
    ("/v2/models/qwen-vl/infer", infer(timeout=False)),
    ("/v2/models/qwen-vl/infer", infer(content_type="json")),
    ("/v2/models/qwen-vl/infer", with_input({"parameters": {"colour": "red"}})),
    ("/v2/models/qwen-vl/infer", infer() | {"outputs": [{"name": "text", "parameters": {"x": 1}}]}),
    ("/v2/models/flux/infer", infer(output_format="")),
    ("/v2/models/flux/infer", with_input({}, SEED | {"datatype": "FP64"})),
    ("/v2/models/flux/infer", with_input({}, SEED | {"datatype": "BYTES", "data": ["1"]})),
    ("/v1/images/generations", DRAW | {"response_format": "url"}),
    ("/v2/models/qwen-vl/infer", infer() | {"colour": "red"}),
]


@pytest.mark.parametrize(("path", "body"), TAKEN, ids=range(len(TAKEN)))
def test_a_body_that_the_document_allows_is_answered(
    path: str, body: dict[str, Any], document: dict[str, Any], http: httpx.Client
) -> None:
    assert list(body_validator(document, path).iter_errors(body)) == []
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("path", "body"), REFUSED, ids=range(len(REFUSED)))
def test_a_body_that_the_document_forbids_is_refused(
    path: str, body: dict[str, Any], document: dict[str, Any], http: httpx.Client
) -> None:
    assert list(body_validator(document, path).iter_errors(body)) != []
    assert http.post(path, json=body).status_code in {400, 404}


@pytest.mark.parametrize("logprobs", [False, True])
def test_answers_of_chat_are_as_the_document_says(
    document: dict[str, Any], http: httpx.Client, logprobs: bool
) -> None:
    content = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    components = {"components": document["components"]}
    whole = Draft202012Validator(content["application/json"]["schema"] | components)
    event = content["text/event-stream"]["schema"]["contentSchema"]
    chunk = Draft202012Validator(event | components)
    asked = CHAT | {"max_tokens": 2, "logprobs": logprobs}
    answer = http.post("/v1/chat/completions", json=asked).json()
    assert list(whole.iter_errors(answer)) == []
    assert (answer["choices"][0]["logprobs"] is not None) == logprobs
    options = {"stream": True, "stream_options": {"include_usage": True}}
    lines = http.post("/v1/chat/completions", json=asked | options).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert len(events) > 2
    assert [error for each in events for error in chunk.iter_errors(each)] == []
    broken = answer["choices"][0] | {"logprobs": {"content": [{"token": 5}], "refusal": None}}
    assert list(whole.iter_errors(answer | {"choices": [broken]})) != []


def test_a_form_has_the_fields_of_the_body_in_json(document: dict[str, Any]) -> None:
    content = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert content["multipart/form-data"]["schema"]["$ref"].endswith("/EditsForm")
    form = document["components"]["schemas"]["EditsForm"]
    (name,) = [name for name in document["components"]["schemas"] if name.endswith("_edits")]
    in_json = document["components"]["schemas"][name]
    assert set(form["properties"]) ^ set(in_json["properties"]) == {"image[]", "images"}
    assert form["properties"]["mask"] == {"type": "string", "format": "binary"}


def test_parts_of_messages_are_in_the_document(document: dict[str, Any]) -> None:
    validator = body_validator(document, "/v1/chat/completions")
    for part in (PICTURE, {"type": "text", "text": "x"}, {"type": "input_text", "text": "x"}):
        body = {"model": "qwen-vl", "messages": [{"role": "user", "content": [part]}]}
        assert list(validator.iter_errors(body)) == []
    wrong = {"role": "user", "content": [{"type": "video"}]}
    assert list(validator.iter_errors({"model": "qwen-vl", "messages": [wrong]})) != []


def test_metadata_has_parameters_limits_sizes_and_tiers(http: httpx.Client) -> None:
    flux = http.get("/v2/models/flux").json()
    assert flux["parameters"]["width"] == {
        "type": "integer", "minimum": 64, "maximum": 256, "multipleOf": 16, "default": 128,
    }  # fmt: skip
    assert flux["parameters"]["num_inference_steps"]["default"] == 4
    assert flux["limits"]["sizes"] == ["128x128"]
    assert flux["limits"]["tiers"] == flux["parameters"]["tier"]["enum"] == ["lossless", "turbo"]
    assert flux["limits"]["default_tier"] == "lossless"
    chat = http.get("/v2/models/qwen-vl").json()
    assert chat["limits"]["max_context"] > chat["parameters"]["max_tokens"]["default"]
    assert chat["limits"]["max_pixels"] == chat["parameters"]["max_pixels"]["maximum"]
    assert chat["limits"]["template_variables"] == ["add_vision_id"]
    assert chat["limits"]["vocabulary_size"] > 600
    for model in (flux, chat):
        assert {"name", "versions", "platform", "inputs", "outputs"} < model.keys()


def test_every_parameter_of_the_metadata_is_taken_at_its_default(http: httpx.Client) -> None:
    for name in ("flux", "qwen-vl"):
        found = http.get(f"/v2/models/{name}").json()["parameters"]
        given = {key: each["default"] for key, each in found.items() if "default" in each}
        cheap = {"width": 64, "height": 64, "num_inference_steps": 1, "max_tokens": 1}
        given |= {key: value for key, value in cheap.items() if key in found}
        body = infer(**given)
        image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [PIXELS]}
        body["inputs"].append(image)  # which strength is for
        answer = http.post(f"/v2/models/{name}/infer", json=body)
        assert answer.status_code == 200, answer.text


def test_metadata_over_grpc_has_the_protocols_fields_alone(server: Running) -> None:
    import grpc

    from predictors.protocol.kserve_sdk import pb, pb_grpc

    with grpc.insecure_channel(server.grpc_target) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        found = stub.ModelMetadata(pb.ModelMetadataRequest(name="flux"))
    assert found.name == "flux"
    assert [tensor.name for tensor in found.outputs] == ["image", "seed"]


def test_the_limits_that_the_document_shows_are_the_metadatas(
    document: dict[str, Any], http: httpx.Client
) -> None:
    for name in ("flux", "qwen-vl"):
        shown = document["paths"][f"/v2/models/{name}"]["get"]["x-limits"]
        assert shown == http.get(f"/v2/models/{name}").json()["limits"]
    assert json.dumps(document)


# -- answers ---------------------------------------------------------------------------------------
SMALL = {"width": 64, "height": 64, "num_inference_steps": 1}


def drawn(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/images/generations", json=DRAW | SMALL | fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_an_empty_negative_prompt_draws_the_picture_without_one(http: httpx.Client) -> None:
    plain = drawn(http, seed=3)["data"]
    for blank in ("", "  \n"):
        assert drawn(http, seed=3, negative_prompt=blank)["data"] == plain
    assert drawn(http, seed=3, negative_prompt="blue")["data"] != plain


def test_a_row_of_a_v2_batch_opts_out_of_the_negative_prompt(http: httpx.Client) -> None:
    def rows(negatives: list[Any], prompts: list[str], **more: Any) -> list[str]:
        body = infer(seed=3, **SMALL, **more)
        shape = [len(prompts)]
        body["inputs"] = [
            {"name": "prompt", "datatype": "BYTES", "shape": shape, "data": prompts},
            {"name": "negative_prompt", "datatype": "BYTES", "shape": shape, "data": negatives},
        ]
        answer = http.post("/v2/models/flux/infer", json=body)
        assert answer.status_code == 200, answer.text
        found: list[str] = answer.json()["outputs"][0]["data"]
        return found

    alone = [entry["b64_json"] for entry in drawn(http, seed=3, n=3)["data"]]
    for more in ({}, {"true_cfg_scale": 4.0}):
        mixed = rows(["blue", "", None], ["a", "a", "a"], **more)
        assert mixed[1:] == alone[1:]
        assert mixed[0] != alone[0]


def test_rows_without_a_seed_count_up_and_the_answers_seed_repeats_them(
    http: httpx.Client,
) -> None:
    for asked in ({}, {"seed": -1}):
        first = drawn(http, n=2, **asked)["data"]
        assert first[1]["seed"] == first[0]["seed"] + 1
        assert drawn(http, n=2, seed=first[0]["seed"])["data"] == first
        told = http.post("/v1/chat/completions", json=CHAT | {"n": 2, "max_tokens": 3} | asked)
        again = http.post(
            "/v1/chat/completions",
            json=CHAT | {"n": 2, "max_tokens": 3, "seed": told.json()["seed"]},
        )
        assert again.json()["choices"] == told.json()["choices"]


def test_a_prompt_that_is_longer_than_the_encoder_reads_is_said(http: httpx.Client) -> None:
    long = "a red circle " * 100
    assert drawn(http)["prompt_tokens_unread"] == 0
    unread = drawn(http, prompt=long)["prompt_tokens_unread"]
    assert unread > 200
    answer = http.post("/v2/models/flux/infer", json=infer(long, **SMALL)).json()
    assert answer["parameters"]["prompt_tokens_unread"] == unread
    read = drawn(http, prompt=long)["usage"]["input_tokens"]
    assert drawn(http, negative_prompt=long)["prompt_tokens_unread"] == unread
    assert read < unread


def test_max_tokens_of_minus_one_goes_on_to_the_end_of_the_context(http: httpx.Client) -> None:
    context = http.get("/v2/models/qwen-vl").json()["limits"]["max_context"]
    few = {"messages": [{"role": "user", "content": "red "}], "max_tokens": 1}
    each = {"messages": [{"role": "user", "content": "red red "}], "max_tokens": 1}
    one, two = (
        http.post("/v1/chat/completions", json=CHAT | body).json()["usage"]["prompt_tokens"]
        for body in (few, each)
    )
    words = "red " * ((context - 40) // (two - one))
    body = CHAT | {"messages": [{"role": "user", "content": words}], "ignore_eos": True}
    answer = http.post("/v1/chat/completions", json=body | {"max_tokens": -1})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["usage"]["total_tokens"] == context
    assert told["choices"][0]["finish_reason"] == "length"


def test_a_prompt_beyond_the_context_is_known_by_its_code_and_words(http: httpx.Client) -> None:
    context = http.get("/v2/models/qwen-vl").json()["limits"]["max_context"]
    for fields in (
        {"messages": [{"role": "user", "content": "word " * (context + 10)}]},
        {"max_tokens": context},
        {"messages": [{"role": "user", "content": "w" * 2_000_000}]},
    ):
        answer = http.post("/v1/chat/completions", json=CHAT | fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
        assert (
            f"This model's maximum context length is {context} tokens. However,"
            in (error["message"])
        )
    plain = http.post("/v2/models/qwen-vl/infer", json=infer(max_tokens=context))
    assert plain.status_code == 400
    assert str(context) in plain.json()["error"]
