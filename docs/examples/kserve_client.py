"""KServe's own clients: a picture over REST, its description over gRPC."""

import asyncio
import base64
import os
from pathlib import Path

from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)

url = os.environ.get("PREDICTORS_URL", "http://127.0.0.1:8080")
target = os.environ.get("PREDICTORS_GRPC", "127.0.0.1:8081")


async def main() -> None:
    prompt = InferInput("prompt", [1], "BYTES", data=["a large red circle on a white background"])
    drawing = InferRequest("flux", infer_inputs=[prompt], parameters={"seed": 7})
    rest = InferenceRESTClient(RESTConfig(protocol="v2", timeout=120))
    drawn = await rest.infer(url, drawing, "flux")
    await rest.close()
    png = base64.b64decode(next(o for o in drawn.outputs if o.name == "image").data[0])
    Path("circle.png").write_bytes(png)

    question = InferInput("prompt", [1], "BYTES", data=["Describe this picture."])
    picture = InferInput("image", [1], "BYTES", data=[png])
    async with InferenceGRPCClient(target, timeout=120) as grpc:
        said = await grpc.infer(InferRequest("qwen-vl", infer_inputs=[picture, question]))
    text = next(o for o in said.outputs if o.name == "text").as_numpy()[0]
    print(text.decode())


asyncio.run(main())
