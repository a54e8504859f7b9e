"""Controls, grammars and logprobs on a GPU: graphs of their own, the tokens of the CPU, no wait but
the one for the tokens before, nothing captured after ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from predictors.chat.request import ChatDelta, ChatRequest, Controls, Sampling, ScoredDelta
from predictors.chat.work import ChatWork
from predictors.serving.job import Job
from tests.chat.room import CHECKPOINT, Room, chat, deltas_of, png, tokens_of
from tests.chat.token_grammars import constrained_job, one_of, run_together
from tests.tools.syncs import no_host_syncs

pytestmark = pytest.mark.gpu

DRAWN = Sampling(temperature=1.3)
SAMPLED = Sampling(temperature=1.2, top_k=40, top_p=0.95, repetition_penalty=1.2)
MOST = {"max_tokens": 16, "ignore_eos": True}
LONG = [list(range(300, 340))]
BIAS = Controls(logit_bias=((44, 4.0), (45, -100.0)), min_tokens=9, logprobs=3)
TOGETHER: tuple[tuple[ChatRequest, Sequence[Sequence[int]]], ...] = (
    (chat(png(1), "greedy", **MOST), ()),
    (chat("drawn", sampling=DRAWN, seed=7, **MOST), ()),
    (chat("sampled", sampling=SAMPLED, seed=8, **MOST), ()),
    (chat("greedy list", **MOST), LONG),
    (chat("drawn tree", sampling=DRAWN, seed=1, **MOST), [[10, 11], [10, 12, 13], [20] * 9]),
    (chat(png(2), "bias", controls=BIAS, max_tokens=16), ()),
    (chat("bias, drawn", sampling=DRAWN, seed=2, controls=BIAS, max_tokens=16), ()),
    (chat("min_p", sampling=replace(SAMPLED, min_p=0.2), seed=3, **MOST), LONG),
)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def gpu(request: pytest.FixtureRequest) -> Room:
    return Room.open(CHECKPOINT, "auto", "cuda", dtype=request.param)


def jobs_of(room: Room) -> list[Job[ChatWork, ChatDelta]]:
    return [
        constrained_job(room, request, one_of(room, *choices) if choices else None)
        for request, choices in TOGETHER
    ]


def is_exact(room: Room) -> bool:
    return room.engine._placement.dtype == torch.float32


def test_eight_rows_get_the_tokens_of_the_cpu(gpu: Room, room: Room) -> None:
    ours, theirs = jobs_of(gpu), jobs_of(room)
    run_together(gpu, ours)
    run_together(room, theirs)
    if is_exact(gpu):
        assert [tokens_of(job) for job in ours] == [tokens_of(job) for job in theirs]
    assert tokens_of(ours[3]) == LONG[0][:16]
    assert tokens_of(ours[4])[:-1] in [[10, 11], [10, 12, 13], [20] * 9]
    assert 45 not in tokens_of(ours[5])
    described = gpu.engine.describe()
    assert described["captures_after_ready"] == described["recompilations_after_ready"] == 0


def test_free_rows_get_the_tokens_of_steps_without_controls(gpu: Room) -> None:
    if not is_exact(gpu):
        pytest.skip("bits depend on the number of rows of a step")
    free = [request for request, _ in TOGETHER[:3]]
    alone = gpu.answers(free)
    jobs = jobs_of(gpu)
    run_together(gpu, jobs)
    assert [tokens_of(job) for job in jobs[:3]] == alone


def test_logprobs_are_those_of_the_cpu(gpu: Room, room: Room) -> None:
    if not is_exact(gpu):
        pytest.skip("logits of bfloat16 differ")
    request = replace(TOGETHER[5][0], controls=replace(BIAS, logprobs=20))
    found = []
    for each in (gpu, room):
        job = each.start(request)
        each.finish()
        found.append([d.scores[0] for d in deltas_of(job) if isinstance(d, ScoredDelta)])
    ours, theirs = found
    assert len(ours) == len(theirs) > 8
    for a, b in zip(ours, theirs, strict=True):
        assert (a.token, a.rank) == (b.token, b.rank)
        assert a.logprob == pytest.approx(b.logprob, abs=1e-3)
        assert [v for _, v in a.top] == pytest.approx([v for _, v in b.top], abs=1e-3)


def test_a_step_with_controls_waits_for_nothing_but_the_tokens_before(gpu: Room) -> None:
    """Events are not seen by torch's check: that of the tokens is the one wait of every step."""
    for job in jobs_of(gpu):
        assert gpu.engine.admit(job)
    for _ in range(4):
        gpu.engine.step(gpu.engine.active)
    with no_host_syncs():
        for _ in range(3):
            gpu.engine.step(gpu.engine.active)
    gpu.finish()


def test_rows_of_the_widest_step_are_equal_in_bits() -> None:
    """Where answers must not depend on others."""
    room = Room.open(CHECKPOINT, "auto", "cuda", dtype="bfloat16", deterministic="on")
    alone = jobs_of(room)
    for job in alone:
        run_together(room, [job])
    together = jobs_of(room)
    run_together(room, together)
    assert [tokens_of(job) for job in together] == [tokens_of(job) for job in alone]
