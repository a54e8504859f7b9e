"""Joules of work are the difference of the driver's counter, of the first card."""

from __future__ import annotations

from benchmarks.common.energy import first_card, joules_of
from tests.compute.watch.scripted_nvml import CARD, ScriptedNvml


class OneCard(ScriptedNvml):
    """The scripted driver, asked by index."""

    def _nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return "card"


def test_the_counter_is_read_before_and_after_the_work() -> None:
    driver = OneCard()
    card = first_card(lambda: driver)
    assert card is not None
    assert card.name == f"GPU-{CARD}"

    def work() -> str:
        driver.millijoules += 2_300_000
        return "a picture"

    assert joules_of(work, card) == (2300.0, "a picture")


def test_without_a_card_or_its_counter_nothing_is_told() -> None:
    assert first_card(lambda: None) is None
    assert first_card(lambda: OneCard("nvmlDeviceGetHandleByIndex")) is None
    assert joules_of(lambda: 1, None) == (None, 1)
    refusing = OneCard("nvmlDeviceGetTotalEnergyConsumption")
    assert joules_of(lambda: 1, first_card(lambda: refusing)) == (None, 1)
