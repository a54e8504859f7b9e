"""A program that sends requests with KServe's REST and gRPC clients and prints the results as JSON.

Arguments: URL, gRPC target, a picture in hex.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import Any

URL, TARGET, PICTURE = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])
sys.argv = sys.argv[:1]  # importing KServe parses the command line

from kserve import (  # noqa: E402
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)


def request(picture: Any) -> InferRequest:
    return InferRequest(
        model_name="echo",
        request_id="r1",
        infer_inputs=[
            InferInput("prompt", [1], "BYTES", data=["hello"]),
            InferInput("image", [1], "BYTES", data=[picture]),
        ],
        parameters={"steps": 3},
    )


async def rest() -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    try:
        result = await client.infer(URL, request(base64.b64encode(PICTURE).decode()), "echo")
        outputs = {tensor.name: tensor.data for tensor in result.outputs}
        return {
            "live": await client.is_server_live(URL),
            "ready": await client.is_server_ready(URL),
            "model_ready": await client.is_model_ready(URL, "echo"),
            "id": result.id,
            "echo": outputs["echo"],
            "image": base64.b64decode(outputs["image"][0]).hex(),
        }
    finally:
        await client.close()


async def grpc() -> dict[str, Any]:
    async with InferenceGRPCClient(TARGET, timeout=60) as client:
        result = await client.infer(request(PICTURE))
        outputs = {tensor.name: tensor for tensor in result.outputs}
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready("echo"),
            "id": result.id,
            "echo": [x.decode() for x in outputs["echo"].as_numpy().tolist()],
            "image": outputs["image"].as_numpy().tolist()[0].hex(),
            "rows": result.parameters["rows"].int64_param,
        }


async def main() -> None:
    sys.stdout.write(json.dumps({"rest": await rest(), "grpc": await grpc()}))


if __name__ == "__main__":
    asyncio.run(main())
