"""tritonclient: two pictures in one request over HTTP, their descriptions over gRPC."""

import os
from pathlib import Path

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http

url = os.environ.get("PREDICTORS_URL", "http://127.0.0.1:8080")
target = os.environ.get("PREDICTORS_GRPC", "127.0.0.1:8081")


def texts(values: list[str]) -> np.ndarray:
    return np.array([value.encode() for value in values], dtype=object)


prompts = ["a large red circle on a white background", "a small blue square on a black background"]
prompt = over_http.InferInput("prompt", [2], "BYTES")
prompt.set_data_from_numpy(texts(prompts))
http = over_http.InferenceServerClient(url.removeprefix("http://"))
pictures = http.infer("flux", [prompt], parameters={"seed": 7}).as_numpy("image")
for number, png in enumerate(pictures, 1):
    Path(f"picture-{number}.png").write_bytes(png)

image = over_grpc.InferInput("image", [2], "BYTES")
image.set_data_from_numpy(pictures)
question = over_grpc.InferInput("prompt", [2], "BYTES")
question.set_data_from_numpy(texts(["Describe this picture."] * 2))
with over_grpc.InferenceServerClient(target) as grpc:
    answer = grpc.infer("qwen-vl", [image, question])
for text in answer.as_numpy("text"):
    print(text.decode())
