"""`smoke` against a foreign server, a broken one and none; ours is in tests/product."""

from __future__ import annotations

import json
from typing import Any

import pytest

from predictors.__main__ import main
from predictors.cli.child import held_ports
from predictors.cli.grpc_infer import message_class
from predictors.cli.outcomes import FAILED, NO_SERVER
from predictors.cli.smoke import look_at, scene
from tests.cli.foreign import foreign_server, json_answer, vllm_like


def test_a_foreign_server_is_asked_what_it_offers(capsys: pytest.CaptureFixture[str]) -> None:
    with foreign_server() as url:
        assert main(["smoke", url, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert main(["smoke", url]) == 0
    assert report["ok"] is True
    found = {check["name"]: check["ok"] for check in report["checks"]}
    assert found == {
        "health": True, "models": True, "OpenAI chat llava": True,
        "V2 REST": None, "gRPC": None, "OpenAI images": None,
    }  # fmt: skip
    assert all(check["ms"] > 0 for check in report["checks"] if check["ok"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(report["checks"])
    assert "A foreign cat." in next(line for line in lines if line.startswith("OpenAI chat"))


def test_a_check_that_fails_says_why_and_the_exit_code_is_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(method: str, path: str, body: Any) -> Any:
        if path.endswith("/completions"):
            return json_answer(500, {"error": {"message": "CUDA \x1b[31mis gone"}})
        return vllm_like(method, path, body)

    with foreign_server(broken) as url:
        assert main(["smoke", url]) == FAILED
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "500: CUDA [31mis gone" in out


def test_a_dead_server_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with held_ports(1) as (port,):
        assert main(["smoke", f"http://127.0.0.1:{port}", "--json"]) == NO_SERVER
    assert "nothing listens" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_the_scene_that_is_sent_passes_its_own_look() -> None:
    size, places = look_at(scene())
    assert size == "128x128"
    assert 0 < places["red"] < places["blue"]


def test_the_declared_messages_are_those_of_kserve() -> None:
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as theirs

    own = message_class("ModelInferRequest")(model_name="flux")
    own.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    own.raw_input_contents.append(b"\1\0\0\0a")
    own.parameters.add(key="seed").value.int64_param = 7
    read = theirs.ModelInferRequest.FromString(own.SerializeToString())
    assert (read.model_name, read.inputs[0].name, list(read.inputs[0].shape)) == (
        "flux", "prompt", [1],
    )  # fmt: skip
    assert read.parameters["seed"].int64_param == 7
    assert read.raw_input_contents[0] == b"\1\0\0\0a"
    answer = theirs.ModelInferResponse(model_name="flux", raw_output_contents=[b"x"])
    answer.outputs.add(name="image", datatype="BYTES", shape=[1])
    mine = message_class("ModelInferResponse").FromString(answer.SerializeToString())
    assert [output.name for output in mine.outputs] == ["image"]
