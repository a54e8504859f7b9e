"""Run in a process of its own: draws and describes over `tritonclient.grpc`, prints JSON.

Arguments: gRPC target, a mask's file in hexadecimal, prompts.
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton

PARAMETERS = {"seed": 11, "guidance_scale": 3.5, "num_inference_steps": 4}


def bytes_input(name: str, rows: list[bytes]) -> Any:
    tensor = triton.InferInput(name, [len(rows)], "BYTES")
    return tensor.set_data_from_numpy(np.array(rows, dtype=np.object_))


def streamed(client: Any) -> dict[str, Any]:
    """A picture with previews, words as they come, and a wrong request, all on one stream."""
    found: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: found.put(error or result))
    prompt = [bytes_input("prompt", [sys.argv[3].encode()])]
    watched = PARAMETERS | {"partial_images": 2, "progress": True}
    client.async_stream_infer("flux", prompt, request_id="drawn", parameters=watched)
    told = {"temperature": 0.0, "max_tokens": 12, "stream": True}
    told |= {"logprobs": True, "top_logprobs": 2, "logit_bias": '{"5": -100}', "min_p": 0.05}
    client.async_stream_infer(
        "qwen-vl", prompt, request_id="told", parameters=told, enable_empty_final_response=True
    )
    client.async_stream_infer("flux", prompt, request_id="wrong", parameters={"nope": 1})
    responses: dict[str, list[Any]] = {"drawn": [], "told": []}
    left, failed = {"drawn", "told"}, []
    while left or not failed:
        got = found.get(timeout=120)
        if isinstance(got, Exception):
            failed.append(str(got))
            continue
        response = got.get_response()
        responses[response.id].append(got)
        if response.parameters["triton_final_response"].bool_param:
            left.discard(response.id)
    client.stop_stream()
    return {
        "failed": failed,
        "drawn": [picture_of(each) for each in responses["drawn"]],
        "told": [each.as_numpy("text")[0].decode() for each in responses["told"]],
        "reason": responses["told"][-1].as_numpy("finish_reason")[0].decode(),
        "logprobs": [json.loads(each.as_numpy("logprobs")[0]) for each in responses["told"]],
    }


def picture_of(result: Any) -> Any:
    """The file as hex, or the step that the response tells of."""
    parameters, files = result.get_response().parameters, result.as_numpy("image")
    return parameters["step"].int64_param if files is None else files[0].hex()


def main() -> None:
    mask, prompts = bytes.fromhex(sys.argv[2]), [p.encode() for p in sys.argv[3:]]
    with triton.InferenceServerClient(sys.argv[1]) as client:
        drawn = client.infer("flux", [bytes_input("prompt", prompts)], parameters=PARAMETERS)
        files = list(drawn.as_numpy("image"))
        edited = client.infer(
            "flux",
            [
                bytes_input("prompt", prompts[::-1]),
                bytes_input("image", files),
                bytes_input("mask", [mask]),
            ],
            parameters=PARAMETERS | {"strength": 0.5},
        )
        told = client.infer(
            "qwen-vl",
            [
                bytes_input("prompt", [b"Describe this picture."] * len(files)),
                bytes_input("image", files),
            ],
            parameters={"temperature": 0.0, "max_tokens": 12},
        )
        sys.stdout.write(
            json.dumps(
                {
                    "image": [f.hex() for f in files],
                    "edited": [f.hex() for f in edited.as_numpy("image")],
                    "seed": drawn.as_numpy("seed").tolist(),
                    "text": [t.decode() for t in told.as_numpy("text")],
                    "precision": drawn.get_response().parameters["precision"].string_param,
                    "streamed": streamed(client),
                    "metadata": client.get_model_metadata("flux", as_json=True),
                }
            )
        )


if __name__ == "__main__":
    main()
