"""`check --lora` and a start with `--lora` on the embedded checkpoint, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from predictors.__main__ import main
from tests.fakes import PATIENCE_S
from tests.models.flux.adapters.adapter_files import (
    ATTENTION,
    CHECKPOINT,
    CLIP_Q,
    diffusers,
    halves,
    kohya,
    saved,
)

WITHOUT_TORCH = """
import sys
from predictors.__main__ import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    q = f"{ATTENTION}.to_q"
    return saved(tmp_path, diffusers({q: halves(q, 4), CLIP_Q: halves(CLIP_Q, 2)}))


def test_check_describes_an_adapter_and_says_why_another_is_not_served(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = "lora_unet_double_blocks_0_img_attn_proj"
    bad = kohya(flat, np.zeros((2, 7), np.float32), np.zeros((160, 2), np.float32))
    path = saved(tmp_path, bad, "bad.safetensors")
    flags = ["--lora", f"good={good}", "--lora", f"bad={path}"]
    assert main(["check", str(CHECKPOINT), *flags]) == 2
    text = capsys.readouterr().out
    assert (
        "adapter good: a.safetensors (diffusers), rank 4, changes 1 of text_encoder and 1 of "
        "transformer\n"
    ) in text
    reason = f"bad.safetensors: tensor {flat}.lora_down.weight has shape [2, 7]; "
    assert f"adapter bad: not served; reason: --lora bad: {reason}" in text
    assert "adapters 5.6 MiB" in text  # their tables are counted
    assert main(["check", str(CHECKPOINT), "--lora", f"good={good}", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["loras"]
    assert entry["linears"] == {"text_encoder": 1, "transformer": 1}
    assert len(entry["digest"]) == 64


def test_a_start_with_an_adapter_that_does_not_fit_ends_with_a_sentence(tmp_path: Path) -> None:
    pickled = tmp_path / "style.pt"
    pickled.write_bytes(b"\x80\x04")
    verb = ("serve", "--model", f"flux={CHECKPOINT}", "--lora", f"style={pickled}")
    for arguments in (verb, ("check", str(CHECKPOINT), "--lora", f"style={pickled}")):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *arguments],
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "style.pt: pickled weights are not read" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
