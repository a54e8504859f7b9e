"""A program that sends requests with `tritonclient.grpc` and prints the results as JSON.

It needs its own process, since tritonclient.grpc and KServe both register `inference.*` messages.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton

PICTURE = bytes.fromhex(sys.argv[2])


def bytes_input(name: str, *rows: bytes) -> Any:
    tensor = triton.InferInput(name, [len(rows)], "BYTES")
    return tensor.set_data_from_numpy(np.array(rows, dtype=np.object_))


def ask(client: Any) -> dict[str, Any]:
    seed = triton.InferInput("seed", [2], "INT64").set_data_from_numpy(np.array([7, 8]))
    result = client.infer(
        "echo",
        [bytes_input("prompt", b"a", b"b"), bytes_input("image", PICTURE, PICTURE), seed],
        model_version="1",
        request_id="r1",
        parameters={"scale": 3.5, "steps": 4, "format": "png"},
        timeout=60_000_000,
        client_timeout=60.0,
    )
    response = result.get_response()
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("echo"),
        "metadata": client.get_model_metadata("echo", as_json=True),
        "server": client.get_server_metadata(as_json=True),
        "id": response.id,
        "rows": response.parameters["rows"].int64_param,
        "echo": [x.decode() for x in result.as_numpy("echo")],
        "image": [x.hex() for x in result.as_numpy("image")],
        "seed": result.as_numpy("seed").tolist(),
        "scale": result.as_numpy("scale").tolist(),
    }


def refusals(client: Any) -> dict[str, list[str]]:
    found = {}
    for name, parameters in (("unknown", {"nope": 1}), ("fraction", {"steps": 1.5})):
        try:
            client.infer("echo", [bytes_input("prompt", b"a")], parameters=parameters)
        except triton.InferenceServerException as error:
            found[name] = [error.status(), error.message()]
    return found


if __name__ == "__main__":
    with triton.InferenceServerClient(sys.argv[1]) as grpc_client:
        answer = ask(grpc_client)
        answer["refusals"] = refusals(grpc_client)
        sys.stdout.write(json.dumps(answer))
