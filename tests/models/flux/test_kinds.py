"""The kind of a folder: text to image, FLUX.1-Fill or FLUX.1-Kontext, by what it says and holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from predictors.__main__ import describe_folder
from predictors.errors import EngineFailed, ServingError
from predictors.models.flux.config import read_checkpoint
from predictors.settings import FluxSettings, InvalidSetting, Settings
from tests.diffusion.driver import open_driver
from tests.models.flux.edited import make_fill, make_kontext
from tests.variants import FLUX, Change, Tensors, config, variant, weights

INDEX = "model_index.json"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def fill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fill(tmp_path_factory.mktemp("fill") / "fill")


def kind(folder: Path, named: str = "auto") -> str:
    """As a start reads it; `check` agrees."""
    found = read_checkpoint(folder, kind=named)[0].kind
    described = describe_folder(folder, Settings(flux=FluxSettings(kind=named)))
    assert described.architecture == PIPELINES[found]
    return found


PIPELINES = {"text": "FluxPipeline", "fill": "FluxFillPipeline", "kontext": "FluxKontextPipeline"}
NAMED = {
    "FluxPipeline": "text",
    "FluxImg2ImgPipeline": "text",
    "FluxInpaintPipeline": "text",
    "FluxKontextPipeline": "kontext",
    "FluxKontextInpaintPipeline": "kontext",
}


@pytest.mark.parametrize("pipeline", NAMED)
def test_the_pipeline_of_a_folder_names_its_kind(tmp_path: Path, pipeline: str) -> None:
    folder = variant(FLUX, tmp_path / "c", config(INDEX, _class_name=pipeline))
    assert kind(folder) == NAMED[pipeline]


def test_fill_is_known_by_its_channels_under_any_name(fill: Path, tmp_path: Path) -> None:
    assert kind(fill) == kind(fill, "fill") == "fill"
    assert kind(variant(fill, tmp_path / "c", config(INDEX, _class_name="FluxPipeline"))) == "fill"


def test_a_setting_names_the_kind_of_a_folder_that_lost_it(tmp_path: Path) -> None:
    assert kind(FLUX, "kontext") == "kontext"
    assert kind(make_kontext(tmp_path / "c"), "text") == "text"


CONTRADICTIONS: dict[str, tuple[str, Change, str]] = {
    "named Fill": ("auto", config(INDEX, _class_name="FluxFillPipeline"), "a 'FluxFillPipeline'"),
    "set to fill": ("fill", config(INDEX), r"flux\.kind is fill, but .* in_channels is 64"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_kind_that_the_channels_contradict_is_refused(tmp_path: Path, case: str) -> None:
    named, change, said = CONTRADICTIONS[case]
    folder = variant(FLUX, tmp_path / "c", change)
    with pytest.raises(EngineFailed, match=said) as failure:
        read_checkpoint(folder, kind=named)
    with pytest.raises(ServingError) as described:
        describe_folder(folder, Settings(flux=FluxSettings(kind=named)))
    assert described.value.message == failure.value.message


@pytest.mark.parametrize("named", ["text", "kontext"])
def test_fill_is_no_other_kind(fill: Path, named: str) -> None:
    with pytest.raises(EngineFailed, match="in_channels is 384"):
        read_checkpoint(fill, kind=named)


@pytest.mark.parametrize("channels", [128, 320, 384])
def test_the_channels_of_no_kind_are_refused(tmp_path: Path, channels: int) -> None:
    folder = variant(FLUX, tmp_path / "c", config("transformer/config.json", in_channels=channels))
    with pytest.raises(EngineFailed, match=f"in_channels is {channels}"):
        read_checkpoint(folder)


def test_krea_is_served_as_dev(tmp_path: Path) -> None:
    """FLUX.1-Krea-dev has dev's classes and sizes: its index differs by the parts that it lacks."""
    parts = {"image_encoder": [None, None], "feature_extractor": [None, None]}
    index = config(INDEX, _name_or_path="black-forest-labs/FLUX.1-Krea-dev", **parts)
    folder = variant(FLUX, tmp_path / "krea", index)
    assert kind(folder) == "text"
    ours, theirs = (read_checkpoint(each)[0] for each in (folder, FLUX))
    assert replace(ours, folders=theirs.folders) == theirs


def test_the_encoder_is_counted_where_it_is_loaded(tmp_path: Path) -> None:
    def parameters(edits: str, folder: Path = FLUX) -> int:
        described = describe_folder(folder, Settings(flux=FluxSettings(edits=edits)))
        return {part.name: part.parameters for part in described.parts}["vae"]

    assert parameters("auto") == parameters("on") > 1.5 * parameters("off")
    lost = variant(FLUX, tmp_path / "c", weights(VAE, without_encoder))
    assert parameters("auto", lost) == parameters("off")
    with pytest.raises(InvalidSetting, match="stores no encoder"):
        parameters("on", lost)


def without_encoder(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("encoder.")]:
        del tensors[name]


def test_without_an_encoder_nothing_of_it_is_loaded() -> None:
    with_encoder, without = open_driver(), open_driver(edits="off")
    assert with_encoder.engine.runner.passes.parts.encoder is not None  # type: ignore[attr-defined]
    assert without.engine.runner.passes.parts.encoder is None  # type: ignore[attr-defined]
