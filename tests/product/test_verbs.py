"""The client verbs against both embedded models behind one server, and in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from predictors import __main__ as root
from predictors.__main__ import main
from tests.http.echo import Running
from tests.product.conftest import CHECKPOINTS

SCENE = "a large red circle to the left of a small blue square on a white background"


def test_what_is_drawn_is_described_and_the_server_passes_its_smoke_test(
    product: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "scene.webp"
    draw = ["draw", SCENE, "-o", str(picture), "--seed", "7", "--steps", "12"]
    assert main([*draw, "--url", product.url, "--tier", "lossless", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["seed"], report["tier"]) == ("flux", 7, "lossless")
    assert report["num_inference_steps"] == 12
    with Image.open(picture) as drawn:
        assert (drawn.format, drawn.size) == ("WEBP", (128, 128))
    ask = ["ask", str(picture), "Describe this picture.", "--temperature", "0"]
    assert main([*ask, "--url", product.url]) == 0
    assert "red circle" in capsys.readouterr().out
    port = product.grpc_target.rpartition(":")[2]
    assert main(["smoke", product.url, "--grpc-port", port, "--json"]) == 0
    checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert all(each["ok"] for each in checks.values())
    assert "known answer" in checks["OpenAI chat qwen-vl"]["detail"]
    assert "known answer" in checks["OpenAI images flux"]["detail"]
    assert {"gRPC flux", "gRPC qwen-vl", "V2 REST flux", "V2 REST qwen-vl"} <= checks.keys()


def test_the_demos_report_is_json_and_its_progress_is_apart_from_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "predictors", "demo", "a large red circle", "--json"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=CHECKPOINTS.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (picture,) = report["pictures"]
    assert "red circle" in picture["caption"]
    with Image.open(picture["file"]) as drawn:
        assert drawn.size == (report["drawn"]["width"], report["drawn"]["height"])
    assert 0 < report["ready_seconds"] < report["seconds"]
    assert "stopped cleanly after" in done.stderr


@pytest.mark.parametrize("kind", ["chat", "images", "v2"])
def test_every_kind_of_load_is_answered(
    kind: str, product: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--max-tokens", "4"] if kind == "chat" else ["--parameter", "num_inference_steps=1"]
    flags = ["--seconds", "600", "--requests", "3", "--kind", kind, *few, "--json"]
    assert main(["bench", product.url, *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["answered"], report["errors"]) == (3, {})
    assert (report["ttft_ms"] is not None) == (kind == "chat")


def test_a_folder_is_asked_in_this_process(
    product: Running,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(root.logs, "configure_logging", lambda *_, **__: None)
    monkeypatch.setattr(root.logs, "redirect_library_handlers", lambda: None)
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "white").save(picture)
    ask = ["ask", str(picture), "Describe this picture.", "--temperature", "0", "--max-tokens", "8"]
    assert main([*ask, "--model", str(CHECKPOINTS / "shapes-qwen-vl"), "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert main([*ask, "--url", product.url, "--json"]) == 0
    assert own["answer"] == json.loads(capsys.readouterr().out)["answer"]
    assert main([*ask, "--model", str(CHECKPOINTS / "shapes-flux" / "vae")]) == 2
    assert "served are" in capsys.readouterr().err
