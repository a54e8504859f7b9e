"""Requests of every kind that come while others decode, and the mixed passes that they run in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from predictors.chat.mixed_passes import MixedPasses
from predictors.chat.request import Controls, Sampling, scores_of
from predictors.chat.rows import DecodeRows, PromptPart
from tests.chat.room import Room, chat, deltas_of, png, tokens_of

DRAWN = Sampling(temperature=1.0)
SAMPLED = Sampling(temperature=1.0, top_k=30, repetition_penalty=1.2, frequency_penalty=0.4)
BIASED = Controls(logit_bias=((44, 4.0), (45, -100.0)), min_tokens=3, logprobs=3)
REQUESTS = tuple(
    replace(request, ignore_eos=True)
    for request in (
        chat("tell me all of it", max_tokens=9),
        chat("x" * 50, max_tokens=4, sampling=SAMPLED, seed=3),
        chat(png(1), "and this", max_tokens=5, controls=BIASED),
        chat("short", max_tokens=1),
        chat("y" * 30, max_tokens=4, sampling=DRAWN, seed=4, controls=Controls(logprobs=2)),
        chat(png(2, 60, 100), "that", max_tokens=3),
    )
)

Told = tuple[list[int], list[float]]
"""Tokens, and log-probabilities of those that asked for them."""


class LaunchedPasses:
    """The mixed passes that were launched, as (tokens of prompts, rows that decode)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[tuple[int, int]] = []
        launch = MixedPasses.launch

        def noted(
            mixed: MixedPasses, parts: Sequence[PromptPart], width: int, rows: DecodeRows
        ) -> None:
            self.sizes.append((sum(len(part.tokens) for part in parts), len(rows)))
            launch(mixed, parts, width, rows)

        monkeypatch.setattr(MixedPasses, "launch", noted)


def answers_of(room: Room, order: Sequence[int], chance: random.Random) -> dict[int, Told]:
    """The answers to those of `REQUESTS` that come in this order, at random moments, but of one
    whose caller leaves; by chance only some sequences take part in a step, as after a failure."""
    waiting = [(i, room.job(REQUESTS[i])) for i in order]
    jobs, leaves_at = dict(waiting), chance.randint(2, 20)
    while waiting or room.engine.busy:
        is_due = not room.engine.busy or chance.random() < 0.5
        if waiting and is_due and room.engine.admit(waiting[0][1]):
            waiting.pop(0)
        active = room.engine.active
        if active and chance.random() < 0.2:
            active = chance.sample(active, chance.randint(1, len(active)))
        room.engine.step(active)
        leaves_at -= 1
        if leaves_at == 0 and room.engine.active:
            left = chance.choice(room.engine.active)
            room.engine.evict(left)
            jobs = {i: job for i, job in jobs.items() if job is not left}
    return {i: told_of(job) for i, job in jobs.items()}


def told_of(job: Any) -> Told:
    scores = [score for delta in deltas_of(job) for score in scores_of(delta)]
    return tokens_of(job), [score.logprob for score in scores]


def alone_in(room: Room) -> dict[int, Told]:
    """The answer to each of `REQUESTS` alone."""
    found = {}
    for i, request in enumerate(REQUESTS):
        job = room.start(request)
        room.finish()
        found[i] = told_of(job)
    return found


def assert_alike(found: dict[int, Told], expected: dict[int, Told]) -> None:
    for i, (tokens, scores) in found.items():
        assert tokens == expected[i][0], REQUESTS[i]
        assert scores == pytest.approx(expected[i][1], abs=1e-3)


def shuffled(chance: random.Random) -> list[int]:
    return chance.sample(range(len(REQUESTS)), len(REQUESTS))
