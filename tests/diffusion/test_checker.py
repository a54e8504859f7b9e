"""The stage that judges pictures: a classifier set by hand, which finds red."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from prometheus_client import REGISTRY
from safetensors.torch import load_file, save_file

from predictors import metrics
from predictors.diffusion.checker import PictureChecker, make_checker
from predictors.diffusion.checker_folder import find_checker
from predictors.errors import CheckFailed, ContentRefused, EngineFailed, InvalidRequest
from predictors.settings import FluxSettings, InvalidSetting
from tests.diffusion.red_checker import write_red_checker

CHECKER, LABELS = "PREDICTORS_FLUX_CHECKER", "PREDICTORS_FLUX_CHECKER_LABELS"


def with_square(*colour: int) -> NDArray[np.uint8]:
    pixels = np.full((96, 128, 3), 255, np.uint8)
    pixels[20:70, 20:90] = colour
    return pixels


RED, BLUE = with_square(230, 20, 20), with_square(20, 20, 230)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_red_checker(tmp_path_factory.mktemp("red"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_red_checker(tmp_path_factory.mktemp("several"), several=True)


def settings(folder: Path, **more: Any) -> FluxSettings:
    return FluxSettings(**{"checker": str(folder), "checker_labels": "red", **more})


Make = Callable[..., PictureChecker]


@pytest.fixture
def make() -> Iterator[Make]:
    """`make(folder, **settings)`: a checker, closed at the end."""
    made: list[PictureChecker] = []

    def checker(folder: Path, **more: Any) -> PictureChecker:
        found = make_checker("judge", settings(folder, **more))
        assert found is not None
        made.append(found)
        return found

    yield checker
    for each in made:
        each.close()


def count(verdict: str) -> float:
    labels = {"model": "judge", "verdict": verdict}
    return REGISTRY.get_sample_value("predictors_images_checked_total", labels) or 0.0


# -- verdicts --------------------------------------------------------------------------------------
def test_a_picture_passes_unchanged_and_a_red_one_is_refused(make: Make, folder: Path) -> None:
    checker = make(folder)
    before = count("passed"), count("refused")
    assert checker.check(BLUE).pixels is BLUE
    assert not checker.check(BLUE).is_blank
    with pytest.raises(ContentRefused, match="withheld by this server's content check"):
        checker.check(RED)
    assert (count("passed"), count("refused")) == (before[0] + 2, before[1] + 1)


def test_a_red_picture_is_black_where_the_action_is_blank(make: Make, folder: Path) -> None:
    checker, before = make(folder, checker_action="blank"), count("blanked")
    found = checker.check(RED)
    assert found.is_blank
    assert (found.pixels.shape, found.pixels.dtype, found.pixels.max()) == (RED.shape, np.uint8, 0)
    assert count("blanked") == before + 1


def test_the_threshold_is_reached_and_not_passed(make: Make, folder: Path) -> None:
    score = float(make(folder)._scores(BLUE)[1])
    with pytest.raises(ContentRefused):
        make(folder, checker_threshold=score).check(BLUE)
    assert not make(folder, checker_threshold=min(1.0, score * 1.01)).check(BLUE).is_blank


def test_the_labels_probabilities_add_up(make: Make, folder: Path) -> None:
    with pytest.raises(ContentRefused):  # plain and red together are certain
        make(folder, checker_labels="red, plain", checker_threshold=0.999).check(BLUE)


def test_a_checkpoint_for_several_labels_gives_each_its_own_probability(
    make: Make, several: Path
) -> None:
    checker = make(several, checker_labels="plain,red", checker_threshold=0.6)
    assert checker.check(BLUE).pixels is BLUE  # plain has 0.5, red none; their sum would not count
    with pytest.raises(ContentRefused):
        checker.check(RED)


def test_scores_that_are_not_finite_send_no_picture(make: Make, folder: Path) -> None:
    checker = make(folder)
    for value in (float("nan"), float("inf")):
        broken = torch.tensor([0.0, value])
        checker._scores = lambda _, broken=broken: broken  # type: ignore[misc]
        with pytest.raises(CheckFailed, match="not finite"):
            checker.check(BLUE)


def test_one_thread_judges_whatever_thread_asks(make: Make, folder: Path) -> None:
    checker = make(folder)
    inner, seen = checker._scores, set()

    def scores(pixels: NDArray[np.uint8]) -> torch.Tensor:
        seen.add(threading.current_thread().name)
        return inner(pixels)

    checker._scores = scores
    threads = [threading.Thread(target=checker.check, args=(BLUE,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"judge-check_0"}


def test_a_verdict_is_timed_as_a_stage(make: Make, folder: Path) -> None:
    checker = make(folder)
    stage = metrics.stage_seconds.labels("judge", "check")
    before = stage._sum.get()
    checker.check(BLUE)
    assert stage._sum.get() > before


# -- refused starts --------------------------------------------------------------------------------
def test_without_a_folder_there_is_no_checker() -> None:
    assert make_checker("judge", FluxSettings()) is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"checker_labels": ""},
            f"{LABELS} must name what is not sent; the checkpoint's labels are",
        ),
        ({"checker_labels": " , "}, f"{LABELS} must name what is not sent"),
        ({"checker_labels": "red,nude"}, f"{LABELS} names 'nude'; the checkpoint's labels are"),
        ({"checker": ""}, f"{LABELS} is set, but {CHECKER} is not"),
    ],
    ids=["none", "blank", "unknown", "no folder"],
)
def test_labels_that_are_not_there_are_refused_with_those_that_are(
    folder: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSetting) as refusal:
        find_checker(settings(folder, **more))
    assert message in refusal.value.message


def edit(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def drop(folder: Path, name: str) -> None:
    (folder / name).unlink()


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda x: drop(x, "config.json"), "red/config.json is missing"),
    "no processor": (lambda x: drop(x, "preprocessor_config.json"), "red/preprocessor_config.json"),
    "no weights": (lambda x: drop(x, "model.safetensors"), "red has no safetensors weights"),
    "pickled weights": (
        lambda x: (x / "model.safetensors").rename(x / "pytorch_model.bin"),
        "pickled weights are not read",
    ),
    "cut weights": (
        lambda x: (x / "model.safetensors").write_bytes(b"\x10" * 100),
        "model.safetensors",
    ),
    "another class": (
        lambda x: edit(x, architectures=["BertForSequenceClassification"]),
        "red is a 'BertForSequenceClassification'; a checker is one of",
    ),
    "no class": (lambda x: edit(x, architectures=None), "red is a None; a checker is one of"),
    "no labels": (lambda x: edit(x, id2label=None), "id2label must have a label for each"),
    "gap in labels": (lambda x: edit(x, id2label={"0": "red", "2": "x"}), "id2label must have"),
    "no config but text": (lambda x: (x / "config.json").write_text("{"), "is no JSON"),
    "a pipe": (lambda x: os.mkfifo(x / "merges.txt"), "is no regular file"),
    "missing tensor": (
        lambda x: edit_tensors(x, lambda t: t.pop("classifier.1.bias")),
        "red has 1 missing tensors, the first is classifier.1.bias",
    ),
    "unknown tensor": (
        lambda x: edit_tensors(x, lambda t: t.update(extra=torch.zeros(1))),
        "red has 1 unexpected tensors, the first is extra",
    ),
    "another shape": (
        lambda x: edit_tensors(x, lambda t: t.update({"classifier.1.bias": torch.zeros(3)})),
        "the checker in red",
    ),
    "code of its own": (
        lambda x: edit(x, auto_map={"AutoConfig": "evil.Config"}, model_type="evil"),
        "the checker in red can't be read",
    ),
    "a processor of no kind": (
        lambda x: (x / "preprocessor_config.json").write_text('{"image_processor_type": "No"}'),
        "the checker in red can't be read",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_with_a_sentence(
    name: str, tmp_path: Path, folder: Path
) -> None:
    copy = tmp_path / "red"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    change, message = BROKEN[name]
    change(copy)
    with pytest.raises((EngineFailed, InvalidRequest)) as refusal:
        make_checker("judge", settings(copy))
    assert message in refusal.value.message
    assert str(tmp_path) not in refusal.value.message


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"{CHECKER}: there is no folder"):
        find_checker(settings(tmp_path / "nowhere"))
