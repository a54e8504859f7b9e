"""A start whose checkpoint can't be served: a sentence, no traceback, an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fakes import PATIENCE_S
from tests.variants import FLUX, QWEN, Change, config, cut, scaled, variant, weights, without

T5 = "text_encoder_2/model.safetensors"
LAYER = "encoder.block.0.layer.0.SelfAttention.k"
AT_ONCE, WHILE_LOADING = 2, 70


def blank(tensors: dict[str, torch.Tensor]) -> None:
    tensors["decoder.conv_out.weight"].zero_()


CASES: dict[str, tuple[Path, Change, int, str]] = {
    "a scheduler of another class": (
        FLUX,
        config("scheduler/scheduler_config.json", _class_name="FlowMatchLCMScheduler"),
        AT_ONCE,
        "scheduler/scheduler_config.json is of a 'FlowMatchLCMScheduler'; served is ",
    ),
    "a tokenizer cut short": (
        QWEN,
        cut("tokenizer.json"),
        AT_ONCE,
        "tokenizer.json is no JSON, or cut short",
    ),
    "no tokenizer": (
        QWEN,
        without("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
        AT_ONCE,
        "the checkpoint has no tokenizer",
    ),
    "an int8 text encoder with scales of another shape": (
        FLUX,
        weights(T5, scaled(f"{LAYER}.weight", torch.int8, "SCB")),
        AT_ONCE,
        f"text_encoder_2 is quantised (bitsandbytes int8; tensor {LAYER}.SCB), but its shape",
    ),
    "a decoder that draws nothing": (
        FLUX,
        weights("vae/diffusion_pytorch_model.safetensors", blank),
        WHILE_LOADING,
        "failed while warming up: the picture of warm-up 64x64 base x1 is of one colour",
    ),
}


@pytest.mark.parametrize(("source", "change", "code", "said"), CASES.values(), ids=CASES)
def test_a_checkpoint_that_cant_be_served_ends_the_process_with_a_sentence(
    tmp_path: Path, source: Path, change: Change, code: int, said: str
) -> None:
    folder = variant(source, tmp_path / "c", change)
    flags = ["--host=127.0.0.1", "--port=0", "--grpc-port=-1", "--log-format=text"]
    small = {
        "PREDICTORS_FLUX_SIZES": "64x64",
        "PREDICTORS_FLUX_DEFAULT_SIZE": "64x64",
        "PREDICTORS_FLUX_MAX_SEQUENCE_LENGTH": "16",
        "PREDICTORS_FLUX_TIERS": "lossless",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "predictors", "serve", f"--model=m={folder}", *flags],
        env={**os.environ, **small, "PREDICTORS_COMPUTE_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "m is ready" not in ended.stderr
    assert str(folder) not in ended.stderr
