"""Adapters of the embedded FLUX through a server: unmodified clients, keys and the admin port."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
import tritonclient.http

from predictors.__main__ import build
from predictors.operators.admin import admin_routes
from predictors.protocol.key_file import ApiKey, digest_of, write_keys
from predictors.protocol.kserve_sdk import pb
from predictors.settings import AccessSettings
from tests.http.echo import PATIENCE_S, Running, serving
from tests.models.flux.adapters.adapter_files import SINGLE, diffusers, halves, saved
from tests.product.conftest import CHECKPOINTS, product_settings

FLUX = "adapted-flux"
ASK: dict[str, Any] = {"seed": 3, "num_inference_steps": 2, "width": 64, "height": 64}


def adapter(folder: Path, name: str, seed: int) -> Path:
    down, up = halves(f"{SINGLE}.proj_out", 4, seed)
    changes = {f"{SINGLE}.proj_out": (down / 4, up / 4)}
    return saved(folder, diffusers(changes), f"{name}.safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    return {name: adapter(folder, name, seed) for seed, name in enumerate("abc")}


@pytest.fixture(scope="module")
def served(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Adapters `a` and `b`, room for one more, and two keys: `all`, and `one` for `a` alone."""
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    limited = ApiKey("one", digest_of("one"), models=frozenset({f"{FLUX}:a"}))
    keys.write_bytes(write_keys([ApiKey("all", digest_of("all")), limited]))
    base = product_settings()
    settings = replace(
        base,
        server=replace(base.server, admin_port=0, lora_root=str(files["a"].parent)),
        access=AccessSettings(keys_file=str(keys)),
        flux=replace(base.flux, sizes="64x64", lora_max_active=3, lora_max_rank=8),
    )
    loras = {FLUX: {name: files[name] for name in "ab"}}
    model = build(FLUX, CHECKPOINTS / "shapes-flux", settings, loras=loras)
    more: Any = {"settings": settings, "admin_routes": admin_routes}
    with serving(model, wait_ready=False, **more) as running:  # type: ignore[arg-type]
        model.host.wait_ready(PATIENCE_S * 2)
        yield running


@pytest.fixture
def http(served: Running) -> Iterator[httpx.Client]:
    with served.client() as client:
        client.headers["authorization"] = "Bearer all"
        yield client


@pytest.fixture
def admin(served: Running) -> Iterator[httpx.Client]:
    url = f"http://127.0.0.1:{served.server.admin_port}"
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        yield client


def drawn(client: httpx.Client, model: str = FLUX, **fields: Any) -> bytes:
    body = {"model": model, "prompt": "a red circle", **ASK, **fields}
    answer = client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def test_unmodified_clients_draw_the_same_with_an_adapter(
    served: Running, http: httpx.Client
) -> None:
    plain, with_a = drawn(http), drawn(http, loras=[{"name": "a"}])
    assert plain != with_a
    assert drawn(http, f"{FLUX}:a") == with_a
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="all")
    with client:
        body = {**ASK, "loras": [{"name": "a", "scale": 1}]}
        answer = client.images.generate(model=FLUX, prompt="a red circle", extra_body=body)
        assert base64.b64decode(str(answer.data[0].b64_json)) == with_a  # type: ignore[index]
        assert answer.loras == [{"name": "a", "scale": 1.0}]  # type: ignore[attr-defined]
        listed = {card.id: getattr(card, "parent", None) for card in client.models.list()}
    assert listed == {FLUX: None, f"{FLUX}:a": FLUX, f"{FLUX}:b": FLUX}
    key = {"authorization": "Bearer all"}
    triton = tritonclient.http.InferenceServerClient(served.url.removeprefix("http://"))
    prompt = tritonclient.http.InferInput("prompt", [1], "BYTES")
    prompt.set_data_from_numpy(np.array(["a red circle"], dtype=np.object_))
    text = json.dumps([{"name": "a"}])
    for model, more in ((f"{FLUX}:a", {}), (FLUX, {"loras": text})):
        found = triton.infer(model, [prompt], parameters=ASK | more, headers=key)
        assert found.as_numpy("image")[0] == with_a
        assert json.loads(found.get_response()["parameters"]["loras"]) == [
            {"name": "a", "scale": 1.0}
        ]
    triton.close()


def test_grpc_takes_the_name_and_the_parameter(served: Running, http: httpx.Client) -> None:
    with_a = drawn(http, loras=[{"name": "a"}])
    with grpc.insecure_channel(served.grpc_target) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        for model, text in ((f"{FLUX}:a", ""), (FLUX, '[{"name": "a"}]')):
            message = pb.ModelInferRequest(model_name=model)
            tensor = message.inputs.add(name="prompt", datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(b"a red circle")
            for name, value in ASK.items():
                message.parameters[name].int64_param = value
            if text:
                message.parameters["loras"].string_param = text
            answer = infer(message, metadata=(("authorization", "Bearer all"),))
            assert answer.model_name == model
            assert answer.raw_output_contents[0][4:] == with_a
            assert "loras" in answer.parameters


def test_metadata_and_refusals_name_the_adapters(http: httpx.Client) -> None:
    assert http.get(f"/v2/models/{FLUX}").json()["limits"]["loras"] == ["a", "b"]
    assert http.get(f"/v2/models/{FLUX}:a/ready").status_code == 200
    body = {"model": FLUX, "prompt": "x", "loras": [{"name": "c"}]}
    answer = http.post("/v1/images/generations", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "loras")
    assert answer.json()["error"]["message"] == "there is no adapter 'c'; loaded: a, b"
    answer = http.post("/v1/images/generations", json=body | {"model": f"{FLUX}:c"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    together = [{"name": "a"}, {"name": "b"}, {"name": "a"}]
    answer = http.post("/v1/images/generations", json=body | {"loras": together})
    assert (answer.status_code, "asked for twice" in answer.text) == (400, True)


def test_a_key_for_an_adapter_may_do_that_alone(served: Running) -> None:
    with served.client() as client:
        client.headers["x-api-key"] = "one"
        assert client.get("/v1/models").json()["models"] == [f"{FLUX}:a"]
        assert client.get("/v2/models").json() == {"models": [f"{FLUX}:a"]}
        assert drawn(client, f"{FLUX}:a")
        body = {"prompt": "x", **ASK}
        for model, more in (
            (FLUX, {}),
            (f"{FLUX}:b", {}),
            (f"{FLUX}:a", {"loras": [{"name": "b"}]}),
        ):
            fields = {"model": model, **body, **more}
            answer = client.post("/v1/images/generations", json=fields)
            assert answer.status_code == 403, answer.text
        answer = client.get(f"/v2/models/{FLUX}")
        assert answer.status_code == 403
        missing = client.post("/v1/images/generations", json=body | {"model": f"{FLUX}:zz"})
        assert (missing.status_code, "'b'" in missing.text or " b" in missing.text) == (404, False)


def test_the_admin_port_adds_and_removes(
    http: httpx.Client, admin: httpx.Client, files: dict[str, Path]
) -> None:
    plain, with_b = drawn(http), drawn(http, f"{FLUX}:b")
    added = admin.post("/admin/loras", json={"name": "c", "path": files["c"].name})
    assert added.status_code == 201, added.text
    assert added.json()["linears"] == {"transformer": 1}
    with_c = drawn(http, f"{FLUX}:c")
    assert len({plain, with_b, with_c}) == 3
    names = [each["name"] for each in admin.get("/admin/loras").json()["loras"]]
    assert names == ["a", "b", "c"]
    removed = admin.delete("/admin/loras/c")
    assert (removed.status_code, removed.json()["name"]) == (200, "c")
    answer = http.post("/v1/images/generations", json={"model": f"{FLUX}:c", "prompt": "x"})
    assert answer.status_code == 404
    assert drawn(http) == plain
    assert drawn(http, f"{FLUX}:b") == with_b


def test_a_file_that_is_not_served_is_a_400_and_a_pages_request_is_refused(
    admin: httpx.Client, files: dict[str, Path]
) -> None:
    folder = files["a"].parent
    shutil.copy(folder / "a.safetensors", folder / "broken.safetensors")
    with (folder / "broken.safetensors").open("r+b") as file:
        file.truncate(1000)
    body = {"name": "x", "path": "broken.safetensors"}
    answer = admin.post("/admin/loras", json=body)
    assert (answer.status_code, "broken.safetensors has 1000 bytes" in answer.text) == (400, True)
    assert str(folder) not in answer.text
    page = admin.post("/admin/loras", json=body, headers={"origin": "http://evil.example"})
    assert page.status_code == 403
