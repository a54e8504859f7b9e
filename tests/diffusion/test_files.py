"""Pictures as files: the same pixels with every mark, and what each mark tells."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from predictors import __version__
from predictors.diffusion.files import PictureWriter
from predictors.diffusion.request import ImageRequest, LoraScale, SourcePicture
from predictors.protocol.png import write_png
from predictors.protocol.xmp import COMPOSITE, TRAINED
from predictors.settings import FluxSettings, InvalidSetting
from tests.protocol.test_content_credentials import GOOD, manifest_of, signing

KINDS = ("png", "jpeg", "webp")
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
REQUEST = ImageRequest(
    prompt="a secret <prompt> & more",
    negative_prompt="blur",
    width=96,
    height=64,
    num_inference_steps=4,
    guidance_scale=3.5,
    true_cfg_scale=2.0,
    seed=7,
    max_sequence_length=32,
)
SOURCE = SourcePicture(np.zeros((64, 96, 3), np.uint8), None)
WRITER = PictureWriter("flux", 1)
BARE = replace(WRITER, provenance="none")


def opened(file: bytes) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """The properties of the file's XMP and its pixels."""
    with Image.open(io.BytesIO(file)) as image:
        pixels = np.asarray(image)
        if "xmp" not in image.info:
            return {}, pixels
        found = image.getxmp()["xmpmeta"]["RDF"]["Description"]
    return {name: value for name, value in found.items() if name != "about"}, pixels


@pytest.mark.parametrize("kind", KINDS)
def test_the_mark_is_that_of_the_model_and_the_pixels_are_those_without_it(kind: str) -> None:
    request = replace(REQUEST, output_format=kind)
    file = WRITER.write(PIXELS, request, "request-1")
    found, pixels = opened(file)
    assert found == {
        "DigitalSourceType": TRAINED,
        "CreatorTool": f"vision-predictors {__version__}",
        "AISystemUsed": "flux",
    }
    assert np.array_equal(pixels, opened(BARE.write(PIXELS, request, "request-1"))[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_request_has_the_same_file_whatever_its_id_and_prompt(kind: str) -> None:
    request = replace(REQUEST, output_format=kind)
    file = WRITER.write(PIXELS, request, "request-1")
    other = replace(request, prompt="another", seed=8)
    assert WRITER.write(PIXELS.copy(), other, "request-2") == file
    assert b"secret" not in file


@pytest.mark.parametrize("kind", KINDS)
def test_full_metadata_has_the_id_and_the_parameters_under_the_apis_names(kind: str) -> None:
    request = replace(REQUEST, output_format=kind, metadata="full")
    found, pixels = opened(WRITER.write(PIXELS, request, "request-1"))
    assert found == {
        "DigitalSourceType": TRAINED,
        "CreatorTool": f"vision-predictors {__version__}",
        "AISystemUsed": "flux",
        "AIPromptInformation": "a secret <prompt> & more",
        "request_id": "request-1",
        "negative_prompt": "blur",
        "seed": "7",
        "width": "96",
        "height": "64",
        "num_inference_steps": "4",
        "guidance_scale": "3.5",
        "true_cfg_scale": "2.0",
        "max_sequence_length": "32",
        "tier": "lossless",
    }
    assert np.array_equal(pixels, opened(BARE.write(PIXELS, request))[1])


def test_full_metadata_has_adapters_and_the_strength_of_an_edit() -> None:
    adapters = (LoraScale("pencil", 0.5), LoraScale("night", 1.0))
    request = replace(REQUEST, metadata="full", loras=adapters, source=SOURCE, strength=0.25)
    found, _ = opened(WRITER.write(PIXELS, request))
    assert json.loads(found["loras"]) == [
        {"name": "pencil", "scale": 0.5},
        {"name": "night", "scale": 1.0},
    ]
    assert (found["strength"], "request_id" in found) == ("0.25", False)


def test_a_picture_of_which_a_part_was_kept_is_a_composite() -> None:
    edited = replace(REQUEST, source=SOURCE)
    masked = replace(REQUEST, source=replace(SOURCE, mask=np.zeros((64, 96), np.uint8)))
    assert opened(WRITER.write(PIXELS, edited))[0]["DigitalSourceType"] == TRAINED
    assert opened(WRITER.write(PIXELS, masked))[0]["DigitalSourceType"] == COMPOSITE


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_mark_a_file_holds_pixels_alone(kind: str) -> None:
    request = replace(REQUEST, output_format=kind, metadata="full")
    file = BARE.write(PIXELS, request, "request-1")
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        assert not {"exif", "xmp", "icc_profile", "comment", "Software"} & set(image.info)
        assert not image.getexif()
    assert b"secret" not in file
    if kind == "png":
        assert file == write_png(PIXELS, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signed_file_has_xmp_and_a_manifest_and_the_same_pixels(
    kind: str, tmp_path: Path
) -> None:
    pytest.importorskip("c2pa")
    writer = PictureWriter.of("flux", signing(tmp_path, GOOD))
    assert writer.provenance == "c2pa"
    request = replace(REQUEST, output_format=kind)
    file = writer.write(PIXELS, request, "request-1")
    plain = WRITER.write(PIXELS, request, "request-1")
    (found, pixels), (expected, same) = opened(file), opened(plain)
    assert found == expected
    assert np.array_equal(pixels, same)
    assert "flux" in str(manifest_of(file, f"image/{kind}")["assertions"])


def test_a_writer_without_its_files_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="PREDICTORS_FLUX_C2PA_CERT_FILE is not set"):
        PictureWriter.of("flux", FluxSettings(provenance="c2pa"))
