"""Turns on one card: who goes first, how long a step of tokens waits, what pictures are owed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from predictors.compute.device.placement import Placement
from predictors.compute.device.sharing import (
    MOST_OWED_S,
    PictureTurns,
    SharedCard,
    SharingPolicy,
    TokenTurns,
)
from predictors.settings import SharingSettings
from tests.fakes import PATIENCE_S, ScriptedClock

CPU = Placement(torch.device("cpu"), torch.float32, "off")
CUDA = Placement(torch.device("cuda"), torch.bfloat16, "inductor")


class ToldClock(ScriptedClock):
    """Sets `was_read` whenever it is read: a step of tokens reads it when it begins to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.was_read = threading.Event()

    def __call__(self) -> float:
        self.was_read.set()
        return self.now


def made(clock: ToldClock, kind: str = "turns", wait_s: float = PATIENCE_S) -> SharedCard:
    """A card on which pictures get 0.8 of the time."""
    return SharedCard(CPU, SharingPolicy(kind, 0.8, wait_s), 4, clock)


@contextmanager
def waiting_step(card: SharedCard, clock: ToldClock, order: list[str]) -> Iterator[None]:
    """A thread that waits for a turn of tokens and notes it; it has its turn by the block's end."""

    def step() -> None:
        with card.token_turn("tokens"):
            order.append("tokens")

    clock.was_read.clear()
    thread = threading.Thread(target=step)
    thread.start()
    assert clock.was_read.wait(PATIENCE_S)
    yield
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the step never had its turn"


def test_a_step_of_tokens_waits_until_pictures_had_their_share_and_then_goes_first() -> None:
    clock, order = ToldClock(), list[str]()
    card = made(clock)
    card.set_drawing("pictures", is_drawing=True)
    card.tokens_took(0.005)
    assert card.owed_s == pytest.approx(0.02)
    with waiting_step(card, clock, order):
        with card.picture_turn():  # something is owed: it does not wait for the step
            order.append("first piece")
        card.pictures_took(0.0125)
        assert not card.is_next("tokens")
        card.pictures_took(0.0125)
        with card.picture_turn():
            order.append("second piece")
    assert order == ["first piece", "tokens", "second piece"]


def test_a_step_of_tokens_waits_no_longer_than_its_bound() -> None:
    clock, order = ToldClock(), list[str]()
    card = made(clock, wait_s=0.0)
    card.set_drawing("pictures", is_drawing=True)
    card.tokens_took(0.5)
    with waiting_step(card, clock, order):
        pass
    assert order == ["tokens"]
    assert card.owed_s == MOST_OWED_S


def test_nobody_waits_for_pictures_that_are_not_in_progress() -> None:
    clock, order = ToldClock(), list[str]()
    card = made(clock)
    card.tokens_took(0.005)
    assert card.owed_s == 0
    card.set_drawing("pictures", is_drawing=True)
    card.tokens_took(0.005)
    with waiting_step(card, clock, order):
        card.set_drawing("pictures", is_drawing=False)
    assert order == ["tokens"]
    assert card.owed_s == 0


def test_pictures_of_another_engine_are_owed_still() -> None:
    card = made(ToldClock())
    card.set_drawing("one", is_drawing=True)
    card.set_drawing("other", is_drawing=True)
    card.tokens_took(0.005)
    card.set_drawing("one", is_drawing=False)
    assert card.owed_s == pytest.approx(0.02)


def test_a_step_that_raises_gives_its_turn_back() -> None:
    card = made(ToldClock())
    with pytest.raises(ZeroDivisionError), card.token_turn("tokens"):
        raise ZeroDivisionError
    assert not card.is_next()
    with card.picture_turn():
        pass


def test_what_pieces_and_steps_took_is_measured() -> None:
    card = made(ToldClock(), wait_s=0.0)
    pictures, tokens = PictureTurns(card), TokenTurns(card)
    pictures.set_drawing(is_drawing=True)
    with tokens.step(launches=True):
        torch.ones(8).sum()
    with tokens.step(launches=True):  # accounts for the step before
        owed = card.owed_s
    assert owed > 0
    with pictures.piece():
        torch.ones(2**20).sum()
    assert card.owed_s < owed


def test_a_step_that_launches_nothing_does_not_wait() -> None:
    card = made(ToldClock())
    PictureTurns(card).set_drawing(is_drawing=True)
    card.tokens_took(1.0)
    with TokenTurns(card).step(launches=False):
        assert not card.is_next()


@pytest.mark.parametrize("kind", ["none", "priority"])
def test_without_turns_nothing_waits_and_nothing_is_owed(kind: str) -> None:
    card = made(ToldClock(), kind)
    pictures, tokens = PictureTurns(card), TokenTurns(card)
    pictures.set_drawing(is_drawing=True)
    card.tokens_took(1.0)
    with tokens.step(launches=True), pictures.piece():
        pass  # within each other: neither holds the card
    assert (card.step_pieces, pictures.step_pieces) == (1, 1)


def test_an_engine_without_a_card_is_not_cut() -> None:
    turns = PictureTurns()
    turns.set_drawing(is_drawing=True)
    turns.use_stream()
    with turns.piece(), TokenTurns().step(launches=True):
        assert turns.step_pieces == 1


def test_auto_takes_turns_on_a_gpu_alone() -> None:
    assert SharingPolicy.of(SharingSettings(), CPU).kind == "none"
    assert SharingPolicy.of(SharingSettings(), CUDA) == SharingPolicy("turns", 0.8, 0.03)
    assert SharedCard.of(SharingSettings(), CUDA).step_pieces == 12
    assert SharingPolicy.of(SharingSettings(policy="priority"), CUDA).kind == "priority"


@pytest.mark.gpu
def test_priority_gives_each_kind_a_stream_and_turns_share_one() -> None:
    card = SharedCard(CUDA, SharingPolicy("priority", 0.8, 0.03), 1)
    before = torch.cuda.current_stream()
    try:
        PictureTurns(card).use_stream()
        low = torch.cuda.current_stream()
        TokenTurns(card).use_stream()
        high = torch.cuda.current_stream()
        assert high.priority < low.priority
        card.policy = SharingPolicy("turns", 0.8, 0.03)
        TokenTurns(card).use_stream()
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
    finally:
        torch.cuda.set_stream(before)
