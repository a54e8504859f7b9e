"""V2 over REST as raw HTTP: JSON, the binary extension, metadata, versions, the repository API."""

from __future__ import annotations

import base64
import json
import struct

import httpx
import pytest

from tests.http.echo import PIXEL, Running, echo, infer_body, png, serving, small_settings

INFER = "/v2/models/echo/infer"
HEAD = "inference-header-content-length"


def raw_bytes(*rows: bytes) -> bytes:
    """Elements of a BYTES tensor in the binary extension."""
    return b"".join(struct.pack("<I", len(row)) + row for row in rows)


def raw_input(name: str, shape: list[int], raw: bytes) -> dict:
    """An input whose raw bytes follow the JSON."""
    size = {"binary_data_size": len(raw)}
    return {"name": name, "datatype": "BYTES", "shape": shape, "parameters": size}


def binary_request(body: dict, *tensors: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request whose raw tensors follow the JSON."""
    head = json.dumps(body).encode()
    return head + b"".join(tensors), {
        HEAD: str(len(head)),
        "content-type": "application/octet-stream",
    }


def test_a_json_response_has_the_picture_as_declared_base64(client: httpx.Client) -> None:
    reply = client.post(INFER, json=infer_body("a", "b", id="r1"))
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    outputs = {tensor["name"]: tensor for tensor in body["outputs"]}
    assert (body["model_name"], body["model_version"], body["id"]) == ("echo", "1", "r1")
    assert outputs["echo"]["data"] == ["a", "b"]
    assert outputs["image"]["parameters"] == {"content_type": "image/png", "encoding": "base64"}
    assert [base64.b64decode(x) for x in outputs["image"]["data"]] == [PIXEL, PIXEL]
    assert outputs["seed"] == {"name": "seed", "datatype": "INT64", "shape": [2], "data": [0, 1]}
    assert body["parameters"] == {"rows": 2, "precision": "none"}


def test_binary_request_and_response(client: httpx.Client) -> None:
    picture = png((1, 2, 3))
    prompt, image = raw_bytes(b"x"), raw_bytes(picture)
    body = {
        "inputs": [
            raw_input("prompt", [1], prompt),
            raw_input("image", [1, 1], image),
        ],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "image"}, {"name": "echo", "parameters": {"binary_data": False}}],
    }
    raw, headers = binary_request(body, prompt, image)
    reply = client.post(INFER, content=raw, headers=headers)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers[HEAD])
    outputs = json.loads(reply.content[:length])["outputs"]
    assert [tensor["name"] for tensor in outputs] == ["image", "echo"]
    assert outputs[0]["parameters"]["binary_data_size"] == len(image)
    assert "data" not in outputs[0]
    assert outputs[1]["data"] == ["x"]
    assert reply.content[length:] == raw_bytes(picture)


def test_a_base64_picture_in_json_equals_the_raw_picture(client: httpx.Client) -> None:
    picture = png((9, 9, 9))
    body = infer_body("x")
    encoded = base64.b64encode(picture).decode()
    body["inputs"].append({"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]})
    outputs = client.post(INFER, json=body).json()["outputs"]
    assert base64.b64decode(outputs[1]["data"][0]) == picture


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "application/octet-stream",
    ],
)
def test_json_is_accepted_without_a_content_type(
    client: httpx.Client, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    reply = client.post(INFER, content=json.dumps(infer_body()).encode(), headers=headers)
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        *[("model_name", value, 200) for value in ("echo", "", None)],
        *[("model_name", value, 400) for value in ("other", {}, [], 1, False, 0, "echo:1", "ECHO")],
        *[("model_version", value, 200) for value in ("1", "", None)],
        *[("model_version", value, 400) for value in ("2", 1, {}, [], True, False, "v" * 5000)],
    ],
)
def test_a_model_in_the_body_is_the_one_of_the_path_or_refused(
    client: httpx.Client, field: str, value: object, status: int
) -> None:
    for path in (INFER, INFER.replace("/infer", "/versions/1/infer")):
        reply = client.post(path, json=infer_body() | {field: value})
        assert reply.status_code == status, reply.text
        if status == 400:
            assert field in reply.json()["error"]
            assert len(reply.json()["error"]) < 400


def test_nested_data_equals_flat_data(client: httpx.Client) -> None:
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [2, 1], "data": [["a"], ["b"]]}
    nested = client.post(INFER, json={"inputs": [tensor]}).json()
    flat = client.post(INFER, json={"inputs": [tensor | {"data": ["a", "b"]}]}).json()
    assert nested["outputs"] == flat["outputs"]


def test_requested_outputs_are_returned_in_order(client: httpx.Client) -> None:
    wanted = [{"name": "seed"}, {"name": "echo"}]
    outputs = client.post(INFER, json=infer_body(outputs=wanted)).json()["outputs"]
    assert [tensor["name"] for tensor in outputs] == ["seed", "echo"]


def test_text_of_any_language_round_trips(client: httpx.Client) -> None:
    prompt = "Zürich 東京 🦊 \u0000 שלום"
    outputs = client.post(INFER, json=infer_body(prompt)).json()["outputs"]
    assert outputs[0]["data"] == [prompt]


def test_every_response_has_the_request_id(client: httpx.Client) -> None:
    given = client.get("/v2", headers={"x-request-id": "abc-1"})
    made = client.post(INFER, json=infer_body())
    refused = client.get("/nowhere", headers={"x-request-id": "abc-2"})
    strange = client.get("/v2", headers={"x-request-id": "a b"})
    assert given.headers["x-request-id"] == "abc-1"
    assert refused.headers["x-request-id"] == "abc-2"
    assert len(made.headers["x-request-id"]) == 32
    assert made.json()["id"] == made.headers["x-request-id"]
    assert strange.headers["x-request-id"] != "a b"


def test_metadata_has_names_and_shapes(client: httpx.Client) -> None:
    server = client.get("/v2").json()
    model = client.get("/v2/models/echo").json()
    assert server["name"] == "vision-predictors"
    assert "binary_tensor_data" in server["extensions"]
    assert model["versions"] == ["1"]
    assert model["inputs"][0] == {"name": "prompt", "datatype": "BYTES", "shape": [-1]}
    assert [x["name"] for x in model["outputs"]] == ["echo", "image", "seed", "scale"]
    assert client.get("/v2/models").json() == {"models": ["echo"]}


def test_only_version_1_is_served(client: httpx.Client) -> None:
    assert client.get("/v2/models/echo/versions/1").json() == client.get("/v2/models/echo").json()
    assert client.get("/v2/models/echo/versions/1/ready").status_code == 200
    reply = client.post("/v2/models/echo/versions/1/infer", json=infer_body())
    assert reply.status_code == 200
    for path in ("", "/ready"):
        assert client.get(f"/v2/models/echo/versions/2{path}").status_code == 404
    missing = client.post("/v2/models/echo/versions/2/infer", json=infer_body())
    assert missing.status_code == 404
    assert missing.json() == {"error": "model 'echo' has no version '2'; there is version '1'"}


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_the_repository_api_is_disabled_by_default(client: httpx.Client, verb: str) -> None:
    reply = client.post(f"/v2/repository/models/echo/{verb}")
    assert reply.status_code == 501
    assert "off" in reply.json()["error"]
    assert client.post(INFER, json=infer_body()).status_code == 200


def test_with_the_repository_api_a_model_can_be_unloaded_and_loaded() -> None:
    settings = small_settings(server={"repository_api": True})
    with serving(echo("one", settings), echo("two", settings), settings=settings) as running:
        http = running.client()
        assert http.post("/v2/repository/models/one/unload").status_code == 200
        assert http.get("/v2/models/one/ready").status_code == 503
        assert http.get("/v2/health/ready").status_code == 503
        refused = http.post("/v2/models/one/infer", json=infer_body())
        assert (refused.status_code, refused.json()) == (503, {"error": "model 'one' is unloaded"})
        assert http.post("/v2/models/two/infer", json=infer_body()).status_code == 200
        index = http.post("/v2/repository/index").json()
        assert [entry["state"] for entry in index] == ["UNAVAILABLE", "READY"]
        ready = http.post("/v2/repository/index", json={"ready": True}).json()
        assert [entry["name"] for entry in ready] == ["two"]
        assert http.post("/v2/repository/models/one/load").status_code == 200
        assert http.post("/v2/models/one/infer", json=infer_body()).status_code == 200
        assert http.post("/v2/repository/models/three/load").status_code == 404
        http.close()


@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_v1_inference_is_501_and_names_v2(client: httpx.Client, verb: str) -> None:
    reply = client.post(f"/v1/models/echo:{verb}", json={"instances": []})
    assert reply.status_code == 501
    assert reply.json() == {"error": "V1 inference is not offered; use POST /v2/models/echo/infer"}


def test_metrics_in_both_formats_count_each_request_once(running: Running) -> None:
    with running.client() as client:

        def count(reason: str, model: str = "echo") -> float:
            text = client.get("/metrics").text
            labels = f'model="{model}",operation="infer",protocol="v2_rest",reason="{reason}"'
            line = f"predictors_requests_total{{{labels}}} "
            found = [x for x in text.splitlines() if x.startswith(line)]
            return float(found[0].split()[-1]) if found else 0.0

        before = count("ok"), count("invalid_input"), count("not_found", "unknown")
        client.post(INFER, json=infer_body("a", "b"))
        client.post(INFER, json={"inputs": []})
        client.post("/v2/models/nobody/infer", json=infer_body())
        client.post("/v2/models/nobody2/infer", json=infer_body())
        after = count("ok"), count("invalid_input"), count("not_found", "unknown")
        assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 2]
        assert "nobody" not in client.get("/metrics").text
        open_metrics = client.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
        assert open_metrics.text.endswith("# EOF\n")


def test_no_response_has_cors_headers(client: httpx.Client) -> None:
    reply = client.get("/v2", headers={"origin": "http://evil.example"})
    preflight = client.options(INFER, headers={"origin": "http://evil.example"})
    assert (reply.status_code, preflight.status_code) == (403, 403)
    for headers in (reply.headers, preflight.headers):
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path",
    [
        "/v2", "/v2/models", "/v2/models/echo", "/v2/models/echo/versions/1", "/v2/health/live",
        "/v2/health/ready", "/v2/models/echo/ready", "/v2/models/echo/versions/1/ready",
        "/v2/repository/index", "/v1/models", "/openai/v1/models", "/v1/models/echo",
        "/v2/models/nobody",
    ],
)  # fmt: skip
def test_get_routes_accept_a_trailing_slash(client: httpx.Client, path: str) -> None:
    plain, slashed = client.get(path), client.get(f"{path}/")
    assert (slashed.status_code, slashed.content) == (plain.status_code, plain.content)
    assert client.head(f"{path}/").status_code == plain.status_code
    twice = client.get(f"{path}//")
    assert twice.status_code == 404
    assert "there is no route" in twice.text


def test_a_route_that_is_not_there_names_the_one_that_was_meant(client: httpx.Client) -> None:
    reply = client.get("/healthz")
    assert reply.status_code == 404
    assert reply.json() == {"error": "there is no route '/healthz'; did you mean /v2/health/live?"}


def test_openais_client_shows_the_message_where_its_base_lacks_v1(client: httpx.Client) -> None:
    reply = client.post("/chat/completions", json={})
    assert reply.status_code == 404
    assert reply.json()["error"]["message"].startswith("there is no route '/chat/completions'")


@pytest.mark.parametrize(
    "path", [INFER, "/v1/chat/completions", "/v2/repository/models/echo/unload", "/v2"]
)
def test_other_methods_refuse_a_trailing_slash(client: httpx.Client, path: str) -> None:
    assert client.post(f"{path}/", json=infer_body("a")).status_code == 404
