"""Parts of a pipeline from other folders: `--component transformer=PATH`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from predictors import __main__ as root
from predictors.cli.named_values import named_components
from predictors.compute.device.placement import Placement
from predictors.diffusion.request import ImageParameters
from predictors.errors import ServingError
from predictors.models.flux.model import FluxModel
from predictors.settings import ComputeSettings, Settings
from tests.diffusion.driver import FAST, drive_model, open_driver
from tests.variants import (
    FLUX,
    QWEN,
    Change,
    config,
    variant,
    weights,
    without,
    write,
)

PLAIN = "diffusion_pytorch_model.safetensors"
IMAGE = ImageParameters("a large red circle", num_inference_steps=2, seed=3)


def flipped(file: str) -> Change:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        name = "proj_out.weight" if "transformer" in file else "decoder.conv_out.weight"
        tensors[name] = -tensors[name]

    return weights(file, edit)


def test_a_part_from_another_folder_is_drawn_with(tmp_path: Path) -> None:
    whole = variant(FLUX, tmp_path / "whole", flipped(f"transformer/{PLAIN}"))
    other = shutil.move(
        variant(FLUX, tmp_path / "x", flipped(f"transformer/{PLAIN}")) / "transformer",
        tmp_path / "my-fine-tune",
    )
    base = variant(FLUX, tmp_path / "base", without("transformer"))
    model = FluxModel(base, parts={"transformer": Path(other)})
    drawn = drive_model(model, Placement(torch.device("cpu"), torch.float32, "off"), **FAST)
    picture = drawn.draw(IMAGE)
    assert np.array_equal(picture, open_driver(whole).draw(IMAGE))
    assert not np.array_equal(picture, open_driver().draw(IMAGE))


def test_a_part_passes_the_checks_of_a_folder(tmp_path: Path) -> None:
    def said(part: str, *changes: Change, missing: str = "") -> str:
        folder = variant(FLUX / (missing or part), tmp_path / f"p{len(list(tmp_path.iterdir()))}")
        for change in changes:
            change(folder)
        with pytest.raises(ServingError) as failure:
            FluxModel(FLUX, parts={part: folder})
        assert str(folder) not in failure.value.message
        with pytest.raises(ServingError) as described:  # what starts and `check` say
            root.describe_folder(FLUX, Settings(), components={part: folder})
        assert described.value.message == failure.value.message
        return failure.value.message

    assert "'SD3Transformer2DModel'" in said(
        "transformer", config("config.json", _class_name="SD3Transformer2DModel")
    )
    assert "in_channels is 384" in said("transformer", config("config.json", in_channels=384))
    assert "torchao" in said(
        "transformer", config("config.json", quantization_config={"quant_method": "torchao"})
    )
    assert "is of a 'AutoencoderKL'" in said("transformer", missing="vae")
    assert "'AutoencoderTiny'" in said("vae", config("config.json", _class_name="AutoencoderTiny"))
    assert "holds an adapter" in said("transformer", write("adapter_config.json", "{}"))
    assert "sets use_beta_sigmas" in said(
        "scheduler", config("scheduler_config.json", use_beta_sigmas=True)
    )


COMPONENTS: dict[str, tuple[list[str], list[str], str]] = {
    "a part that is none": (["f"], ["unet={vae}"], "no such part; it has scheduler, text_encoder"),
    "a whole pipeline": (["f"], ["transformer={flux}"], "give the folder transformer in it"),
    "no folder": (["f"], ["vae=nowhere"], "--component vae: there is no folder 'nowhere'"),
    "a file": (["f"], ["transformer={file}"], "is a file, not a folder"),
    "of which model": (["f", "g"], ["vae={vae}"], "of which model? Write MODEL.vae=PATH"),
    "no such model": (["f"], ["x.vae={vae}"], "there is no --model x"),
    "twice": (["f"], ["vae={vae}", "f.vae={vae}"], "--component vae is given twice for f"),
    "of a chat model": (["q"], ["vae={vae}"], "q is one model and has no parts"),
}


@pytest.mark.parametrize(("models", "flags", "said"), COMPONENTS.values(), ids=COMPONENTS)
def test_a_component_that_has_no_place_is_refused(
    models: list[str],
    flags: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(root.logs, "configure_logging", lambda *_, **__: None)
    paths = {"vae": FLUX / "vae", "flux": FLUX, "file": FLUX / "vae" / PLAIN}
    named = [f"--model={name}={QWEN if name == 'q' else FLUX}" for name in models]
    given = [f"--component={flag.format(**paths)}" for flag in flags]
    assert root.main(["warm", *named, *given]) == 2
    assert said in capsys.readouterr().err


def test_components_are_found_by_model_and_part() -> None:
    vae, t5 = FLUX / "vae", FLUX / "text_encoder_2"
    one = named_components([f"vae={vae}", f"text_encoder_2={t5}"], ["flux.1"])
    assert one == {"flux.1": {"vae": vae, "text_encoder_2": t5}}
    several = named_components([f"org/a.b.vae={vae}", f"q.vae={vae}"], ["q", "org/a.b"])
    assert several == {"org/a.b": {"vae": vae}, "q": {"vae": vae}}


def test_the_log_says_which_parts_are_from_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(compute=ComputeSettings(device="cpu"))
    with caplog.at_level(logging.INFO):
        parts = {"flux": {"vae": FLUX / "vae"}}
        model = root.build("flux", FLUX, settings, components=parts)
    model.stop()
    assert "flux: vae is that in the folder vae" in caplog.text
