"""Turns of the engines that share one card: steps of tokens, and pieces of the work for pictures.

Engines launch on threads of their own. Under `turns` all of them use one stream, so work runs in
the order of its launch, and a `SharedCard` decides that order. Under `priority` each kind has a
stream, and the card's scheduler decides.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from predictors.compute.device.pacing import AHEAD, DeviceSpan
from predictors.compute.device.placement import Placement
from predictors.settings import SharingSettings

MOST_OWED_S = 1.0
"""Pictures are owed no more than this: one burst of long prompts is not made up for minutes."""
TOKENS_PRIORITY, PICTURES_PRIORITY = -1, 0  # of streams; CUDA takes the lower number first


@dataclass(frozen=True, slots=True)
class SharingPolicy:
    """See `SharingSettings`; `kind` is never `auto`."""

    kind: str
    picture_share: float
    token_wait_s: float

    @classmethod
    def of(cls, settings: SharingSettings, placement: Placement) -> SharingPolicy:
        usual = "turns" if placement.is_cuda else "none"
        kind = usual if settings.policy == "auto" else settings.policy
        return cls(kind, settings.picture_share, settings.token_wait_ms / 1e3)


class SharedCard:
    """One card, or the CPU, and the engines on it. Any thread.

    A lock is held while a turn's work is launched, so that the work of two engines does not mix.
    `policy` may be replaced while engines run; see `TokenTurns.use_stream` for `priority`.
    """

    def __init__(
        self,
        placement: Placement,
        policy: SharingPolicy,
        step_pieces: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.placement = placement
        self.policy = policy
        self.step_pieces = step_pieces if policy.kind == "turns" else 1
        """Pieces into which a denoise step is cut."""
        self._clock = clock
        self._changed = threading.Condition()
        self._owed_s = 0.0
        self._drawing: set[object] = set()
        self._deadlines: dict[object, float] = {}

    @classmethod
    def of(cls, settings: SharingSettings, placement: Placement) -> SharedCard:
        policy = SharingPolicy.of(settings, placement)
        return cls(placement, policy, settings.step_pieces)

    @property
    def owed_s(self) -> float:
        """Seconds of the card that pictures have to get before the next step of tokens, unless that
        has waited for long."""
        return self._owed_s

    def is_next(self, owner: object | None = None) -> bool:
        """True if a waiting step of tokens, that of `owner` if given, goes before any picture."""
        deadlines = self._deadlines
        if not deadlines or (owner is not None and owner not in deadlines):
            return False
        if not self._drawing or self._owed_s <= 0:
            return True
        deadline = min(deadlines.values()) if owner is None else deadlines[owner]
        return self._clock() >= deadline

    @contextmanager
    def token_turn(self, owner: object) -> Iterator[None]:
        """Wait for the turn of a step of tokens, and hold the card while it is launched."""
        with self._changed:
            self._deadlines[owner] = self._clock() + self.policy.token_wait_s
            try:
                while not self.is_next(owner):
                    self._changed.wait(max(0.0, self._deadlines[owner] - self._clock()))
                yield
            finally:
                del self._deadlines[owner]
                self._changed.notify_all()

    @contextmanager
    def picture_turn(self) -> Iterator[None]:
        """Let a step of tokens go first whose turn it is, and hold the card while work for a
        picture is launched."""
        with self._changed:
            self._changed.wait_for(lambda: not self.is_next())
            yield

    def tokens_took(self, seconds: float) -> None:
        """A step of tokens had the card for so long: pictures in progress are owed their share."""
        share = self.policy.picture_share
        with self._changed:
            if self._drawing:
                owed = self._owed_s + seconds * share / (1 - share)
                self._owed_s = min(owed, MOST_OWED_S)

    def pictures_took(self, seconds: float) -> None:
        with self._changed:
            self._owed_s = max(0.0, self._owed_s - seconds)
            self._changed.notify_all()

    def set_drawing(self, owner: object, *, is_drawing: bool) -> None:
        """Say whether an engine has pictures in progress. Without any, nothing is owed."""
        with self._changed:
            if is_drawing:
                self._drawing.add(owner)
                return
            self._drawing.discard(owner)
            if not self._drawing:
                self._owed_s = 0.0
                self._changed.notify_all()


class EngineTurns:
    """Base of the two kinds: an engine's place on a card that it shares; without a card it is alone
    and nothing is waited for. Engine thread."""

    priority = PICTURES_PRIORITY

    def __init__(self, card: SharedCard | None = None) -> None:
        self.card = card
        self._launched: deque[DeviceSpan] = deque()

    @property
    def _timed(self) -> SharedCard | None:
        """The card, if engines take turns on it."""
        card = self.card
        return card if card is not None and card.policy.kind == "turns" else None

    def use_stream(self) -> None:
        """Have this thread launch where the policy says. Call it before weights are loaded; a later
        call must wait for the device first."""
        if self.card is None or not self.card.placement.is_cuda:
            return
        device = self.card.placement.device
        if self.card.policy.kind == "priority":
            torch.cuda.set_stream(torch.cuda.Stream(device, priority=self.priority))
        else:
            torch.cuda.set_stream(torch.cuda.default_stream(device))

    @contextmanager
    def _measured(self, card: SharedCard) -> Iterator[None]:
        span = DeviceSpan(card.placement)
        with span:
            yield
        self._launched.append(span)


class PictureTurns(EngineTurns):
    """Of an engine that draws pictures."""

    @property
    def step_pieces(self) -> int:
        return 1 if self.card is None else self.card.step_pieces

    @contextmanager
    def piece(self) -> Iterator[None]:
        """The launches of one piece: part of a step, an encoder or a decoder. The host waits until
        fewer than two earlier ones are in flight."""
        if (card := self._timed) is None:
            yield
            return
        while len(self._launched) >= AHEAD:
            card.pictures_took(self._launched.popleft().seconds())
        with card.picture_turn(), self._measured(card):
            yield
        if not card.placement.is_cuda:
            card.pictures_took(self._launched.popleft().seconds())

    def set_drawing(self, *, is_drawing: bool) -> None:
        """As the card's."""
        if self.card is not None:
            if not is_drawing:
                self._launched.clear()
            self.card.set_drawing(self, is_drawing=is_drawing)


class TokenTurns(EngineTurns):
    """Of an engine that decodes tokens."""

    priority = TOKENS_PRIORITY

    @contextmanager
    def step(self, *, launches: bool) -> Iterator[None]:
        """The launches of one step, once it is its turn. One that `launches` nothing waits for
        nothing."""
        card = self._timed
        if card is None or not launches:
            yield
            return
        # on a GPU the newest step may be in flight; those before it were read
        while len(self._launched) > card.placement.is_cuda:
            card.tokens_took(self._launched.popleft().seconds())
        with card.token_turn(self), self._measured(card):
            yield
