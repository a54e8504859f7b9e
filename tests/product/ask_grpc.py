"""Run in a process of its own: draws and describes over `tritonclient.grpc`, prints JSON.

Arguments: gRPC target, a mask's file in hexadecimal, prompts.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton

PARAMETERS = {"seed": 11, "guidance_scale": 3.5, "num_inference_steps": 4}


def bytes_input(name: str, rows: list[bytes]) -> Any:
    tensor = triton.InferInput(name, [len(rows)], "BYTES")
    return tensor.set_data_from_numpy(np.array(rows, dtype=np.object_))


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
                    "metadata": client.get_model_metadata("flux", as_json=True),
                }
            )
        )


if __name__ == "__main__":
    main()
