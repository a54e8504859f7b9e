"""Which tiers are loaded where, what each is drawn with, and settings that can't be had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from predictors.diffusion import limits as offer
from predictors.diffusion.limits import make_limits, make_tiers
from predictors.diffusion.request import BASE, FP8, ImageParameters, Tiers
from predictors.models.flux.config import read_checkpoint
from predictors.settings import FluxSettings, InvalidSetting
from tests.diffusion.driver import CHECKPOINT

CPU, OLD_GPU, GPU = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
FACTS, _ = read_checkpoint(CHECKPOINT)


@pytest.fixture(autouse=True)
def _one_gpu_has_fp8_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer, "has_fp8_units", lambda device: device == GPU)


def tiers(device: torch.device, *, is_quantized: bool = False, **settings: Any) -> Tiers:
    return make_tiers(FluxSettings(**settings), device, is_quantized=is_quantized)


@pytest.mark.parametrize(
    ("device", "is_quantized", "loaded", "forms"),
    [
        (CPU, False, "lossless turbo", (BASE,)),
        (OLD_GPU, False, "lossless turbo", (BASE,)),
        (GPU, False, "lossless high turbo", (BASE, FP8)),
        (CPU, True, "high turbo", (FP8,)),
        (GPU, True, "high turbo", (FP8,)),
    ],
)
def test_by_default_all_that_runs_well_is_loaded(
    device: torch.device, is_quantized: bool, loaded: str, forms: tuple[str, ...]
) -> None:
    found = tiers(device, is_quantized=is_quantized)
    assert (found.loaded, found.forms) == (tuple(loaded.split()), forms)
    assert found.default == found.loaded[0]


@pytest.mark.parametrize(
    ("asked", "is_quantized", "forms"),
    [
        ("lossless", False, {"lossless": BASE}),
        (" turbo , lossless", False, {"lossless": BASE, "turbo": BASE}),
        ("high", False, {"high": FP8}),
        ("turbo", False, {"turbo": BASE}),
        ("turbo,high", False, {"high": FP8, "turbo": FP8}),
        ("lossless,high,turbo", False, {"lossless": BASE, "high": FP8, "turbo": FP8}),
        ("turbo", True, {"turbo": FP8}),
    ],
)
def test_what_is_asked_for_is_loaded_also_on_the_cpu(
    asked: str, is_quantized: bool, forms: dict[str, str]
) -> None:
    found = tiers(CPU, is_quantized=is_quantized, tiers=asked)
    assert {tier: found.form_of(tier) for tier in found.loaded} == forms
    assert list(found.loaded) == list(forms)  # in the order of fidelity
    assert set(found.forms) == set(forms.values())


def test_a_request_that_names_no_tier_gets_the_default() -> None:
    for default in ("", "lossless", "turbo"):
        made = make_limits(FACTS, FluxSettings(default_tier=default))
        assert made.request(ImageParameters("x")).tier == (default or "lossless")
        assert made.request(ImageParameters("x", tier="turbo")).may_skip
    assert not make_limits(FACTS, FluxSettings()).request(ImageParameters("x")).may_skip


def test_a_checkpoint_stored_in_fp8_is_served_by_its_facts() -> None:
    made = make_limits(replace(FACTS, is_quantized=True), FluxSettings())
    assert made.request(ImageParameters("x")).tier == "high"


@pytest.mark.parametrize(
    ("device", "is_quantized", "settings", "words"),
    [
        (CPU, False, {"tiers": "fast"}, "flux.tiers must be auto, or of lossless, high, turbo"),
        (CPU, False, {"tiers": ""}, "flux.tiers"),
        (CPU, False, {"tiers": "auto,turbo"}, "flux.tiers"),
        (CPU, False, {"default_tier": "high"}, "flux.default_tier is 'high', but flux.tiers are"),
        (CPU, True, {"tiers": "lossless,high"}, "stored in fp8"),
        (OLD_GPU, False, {"tiers": "high"}, "compute capability 8.9"),
        (OLD_GPU, True, {}, "compute capability 8.9"),
    ],
)
def test_tiers_that_cannot_be_had_stop_the_start(
    device: torch.device, is_quantized: bool, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidSetting, match=words):
        tiers(device, is_quantized=is_quantized, **settings)
