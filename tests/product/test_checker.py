"""A server whose pictures are judged: what each protocol answers for one that is not sent."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from predictors.__main__ import build
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.protocol.tasks import make_workers
from predictors.settings import FluxSettings, Settings
from tests.diffusion.red_checker import write_red_checker
from tests.http.echo import PATIENCE_S, Running, serving, small_settings
from tests.product.conftest import CHECKPOINTS, START_S

RED, BLUE = "a large red circle on a white background", "a large blue circle on a white background"
PARAMETERS = {"seed": 11, "num_inference_steps": 4}
REFUSE, BLANK = "flux-refuses", "flux-blanks"


def settings(checker: Path, action: str) -> Settings:
    flux = FluxSettings(
        max_sequence_length=32,
        max_side=256,
        checker=str(checker),
        checker_labels="red",
        checker_action=action,
    )
    base = small_settings()
    return Settings(server=base.server, queue=base.queue, overload=base.overload, flux=flux)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server with two models, one for each action."""
    folder = write_red_checker(tmp_path_factory.mktemp("checker") / "red")
    workers = make_workers(small_settings().server)
    models = [
        build(name, CHECKPOINTS / "shapes-flux", settings(folder, action), workers)
        for name, action in ((REFUSE, "refuse"), (BLANK, "blank"))
    ]
    with (
        closing(workers),
        serving(*models, wait_ready=False, workers=workers) as running,  # type: ignore[arg-type]
    ):
        for model in models:
            model.host.wait_ready(START_S)
        yield running


def infer(running: Running, model: str, *prompts: str) -> httpx.Response:
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [len(prompts)], "data": prompts}
    with running.client() as client:
        body = {"inputs": [tensor], "parameters": PARAMETERS}
        return client.post(f"/v2/models/{model}/infer", json=body)


def over_grpc(running: Running, model: str, *prompts: str) -> Any:
    asked = pb.ModelInferRequest(model_name=model)
    entry = asked.inputs.add(name="prompt", datatype="BYTES", shape=[len(prompts)])
    entry.contents.bytes_contents.extend(prompt.encode() for prompt in prompts)
    for name, value in PARAMETERS.items():
        asked.parameters[name].int64_param = value
    with grpc.insecure_channel(running.grpc_target) as channel:
        return pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(asked, timeout=PATIENCE_S)


def generate(running: Running, model: str, prompt: str, **more: Any) -> Any:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
    extra = PARAMETERS | {"metadata": "default"}
    with client:
        answer = client.images.generate(model=model, prompt=prompt, extra_body=extra, **more)
        return list(answer) if more.get("stream") else answer


def is_black(file: bytes) -> bool:
    with Image.open(BytesIO(file)) as image:
        return not np.asarray(image).any()


# -- refuse ----------------------------------------------------------------------------------------
def test_v2_refuses_with_400_and_names_the_row(judged: Running) -> None:
    assert infer(judged, REFUSE, BLUE).status_code == 200
    reply = infer(judged, REFUSE, RED)
    assert reply.status_code == 400
    assert reply.json()["error"].startswith("the picture was drawn and then withheld")
    reply = infer(judged, REFUSE, BLUE, RED)
    assert (reply.status_code, reply.json()["error"][:7]) == (400, "row 1: ")


def test_openai_refuses_with_its_own_code(judged: Running) -> None:
    picture = generate(judged, REFUSE, BLUE).data[0]
    assert not is_black(base64.b64decode(picture.b64_json))
    with pytest.raises(openai.BadRequestError) as refusal:
        generate(judged, REFUSE, RED)
    assert (refusal.value.code, refusal.value.type, refusal.value.param) == (
        "content_policy_violation",
        "invalid_request_error",
        None,
    )


def test_grpc_refuses_as_an_invalid_argument(judged: Running) -> None:
    assert over_grpc(judged, REFUSE, BLUE).model_name == REFUSE
    with pytest.raises(grpc.RpcError) as refusal:
        over_grpc(judged, REFUSE, RED)
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "withheld by this server's content check" in refusal.value.details()


def test_a_refusal_is_counted_under_a_reason_of_its_own(judged: Running) -> None:
    labels = {"model": REFUSE, "verdict": "refused"}
    before = REGISTRY.get_sample_value("predictors_images_checked_total", labels)
    assert infer(judged, REFUSE, RED).status_code == 400
    assert before is not None
    assert REGISTRY.get_sample_value("predictors_images_checked_total", labels) == before + 1
    infer(judged, REFUSE, BLUE)  # a request is counted after its answer is sent
    labels = {"model": REFUSE, "protocol": "v2_rest", "operation": "infer"}
    labels |= {"reason": "content_policy"}
    assert (REGISTRY.get_sample_value("predictors_requests_total", labels) or 0) >= 1


# -- blank -----------------------------------------------------------------------------------------
def test_v2_sends_black_pictures_and_names_their_rows(judged: Running) -> None:
    reply = infer(judged, BLANK, BLUE, RED, RED).json()
    outputs = {output["name"]: output["data"] for output in reply["outputs"]}
    files = [base64.b64decode(file) for file in outputs["image"]]
    assert [is_black(file) for file in files] == [False, True, True]
    assert reply["parameters"]["blank_rows"] == "1,2"
    assert infer(judged, BLANK, BLUE).json()["parameters"]["blank_rows"] == ""
    assert "blank_rows" not in infer(judged, REFUSE, BLUE).json()["parameters"]


def test_openai_sends_black_pictures_and_says_so_beside_each(judged: Running) -> None:
    for prompt, expected in ((RED, True), (BLUE, False)):
        [picture] = generate(judged, BLANK, prompt).data
        assert is_black(base64.b64decode(picture.b64_json)) is expected
        assert picture.blank is expected
    assert not hasattr(generate(judged, REFUSE, BLUE).data[0], "blank")


def test_grpc_sends_black_pictures_and_names_their_rows(judged: Running) -> None:
    answer = over_grpc(judged, BLANK, RED)
    assert answer.parameters["blank_rows"].string_param == "0"
    assert answer.parameters["provenance"].string_param == "xmp"
    raw = answer.raw_output_contents[0]
    (size,) = struct.unpack_from("<I", raw)
    assert is_black(raw[4 : 4 + size])


# -- previews --------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", [REFUSE, BLANK])
def test_no_preview_gets_past_the_check(judged: Running, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="previews can't be") as refusal:
        generate(judged, model, BLUE, stream=True, partial_images=1)
    assert refusal.value.param == "partial_images"


def test_a_stream_ends_with_the_refusal(judged: Running) -> None:
    with pytest.raises(openai.APIError) as refusal:
        generate(judged, REFUSE, RED, stream=True)
    assert refusal.value.code == "content_policy_violation"
    [event] = generate(judged, BLANK, RED, stream=True)
    assert (event.type, event.blank) == ("image_generation.completed", True)
    assert is_black(base64.b64decode(event.b64_json))
