"""Which models share a card, and starts that are refused because their parts do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from predictors.__main__ import describe_folder
from predictors.compute.checkpoint.summary import CardFacts, FolderSummary
from predictors.operators import sharing
from predictors.operators.sharing import check_memory_shares, share_card
from predictors.settings import FluxSettings, InvalidSetting, QwenVLSettings, Settings

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
NAMED = {"draws": CHECKPOINTS / "shapes-flux", "talks": CHECKPOINTS / "shapes-qwen-vl"}
NO_PARTS: dict[str, dict[str, Path]] = {}
GIB = 2**30


class Model:
    """Keeps the card that it was given."""

    def __init__(self, name: str, task: str) -> None:
        self.name, self.task = name, task
        self.card: object = None

    def share(self, card: object) -> None:
        self.card = card


def settings(flux: float, qwen_vl: float) -> Settings:
    return Settings(
        flux=FluxSettings(memory_fraction=flux), qwen_vl=QwenVLSettings(memory_fraction=qwen_vl)
    )


def check(chosen: Settings, monkeypatch: pytest.MonkeyPatch, memory: int | None) -> None:
    card = CardFacts(memory, has_fp8=True, name="a card")
    monkeypatch.setattr(sharing, "find_card_facts", lambda device, environ: card)
    check_memory_shares(describe_folder, NAMED, chosen, NO_PARTS, {})


def test_models_of_both_kinds_share_one_card_and_others_none() -> None:
    draws, talks = Model("draws", "flux"), Model("talks", "qwen_vl")
    models: Any = [draws, talks]
    card = share_card(models, Settings())
    assert card is not None
    assert draws.card is talks.card is card
    alone: Any = [Model("draws", "flux"), Model("also draws", "flux")]
    assert share_card(alone, Settings()) is None
    assert alone[0].card is None


def test_parts_that_are_more_than_the_card_are_refused_with_their_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InvalidSetting) as caught:
        check(settings(0.7, 0.4), monkeypatch, None)
    assert str(caught.value) == (
        "the models' parts of the GPU's memory add up to 1.1, more than 1: draws 0.7 "
        "(PREDICTORS_FLUX_MEMORY_FRACTION), talks 0.4 (PREDICTORS_QWEN_VL_MEMORY_FRACTION); lower "
        "them, or serve fewer models"
    )
    check(settings(0.7, 0.3), monkeypatch, None)


def test_a_model_that_needs_more_than_its_part_is_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(settings(0.5, 0.5), monkeypatch, 80 * GIB)
    with pytest.raises(InvalidSetting) as caught:
        check(settings(0.01, 0.5), monkeypatch, 80 * GIB)
    message = str(caught.value)
    assert message.startswith("draws needs 1.")
    assert "PREDICTORS_FLUX_MEMORY_FRACTION 0.01 of 80.0 GiB is 0.8 GiB; raise it" in message


def test_models_without_parts_are_described_and_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = list[str]()

    def describe(
        folder: Path, chosen: Settings, card: CardFacts | None, parts: Mapping[str, Path] | None
    ) -> FolderSummary:
        seen.append(folder.name)
        return FolderSummary("", "flux", (), ())

    monkeypatch.setattr(sharing, "find_card_facts", lambda *_: pytest.fail("nobody asked"))
    check_memory_shares(describe, NAMED, Settings(), NO_PARTS, {})
    assert seen == ["shapes-flux", "shapes-qwen-vl"]


def test_a_folder_is_judged_for_its_part_of_the_card() -> None:
    card = CardFacts(80 * GIB, has_fp8=True)
    folder = NAMED["draws"]
    whole = describe_folder(folder, Settings(), card)
    part = describe_folder(folder, settings(0.01, 0), card)
    chosen = [next(o for o in each.options if o.is_chosen) for each in (whole, part)]
    assert [option.fits for option in chosen] == [True, False]
    assert (whole.memory_fraction, part.memory_fraction) == (0, 0.01)


def test_a_models_part_of_an_unknown_card_is_unknown() -> None:
    assert CardFacts().within(0.5) == CardFacts()
    assert CardFacts(100).within(0.25).memory_bytes == 25
    assert CardFacts(100).within(0).memory_bytes == 100
