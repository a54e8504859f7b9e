"""Controls and grammars in the engine: tokens alone and beside others, on the plain path and one
step ahead; the order of launches; steps that fail; rows that end alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from predictors import metrics
from predictors.chat.choosing import TokenChooser
from predictors.chat.constraints import MaskWords
from predictors.chat.limits import MOST_BIASED, MOST_STOP_TOKENS
from predictors.chat.request import (
    ChatDelta,
    ChatRequest,
    Controls,
    Sampling,
    scores_of,
)
from predictors.chat.runner import ChatRunner
from predictors.chat.work import ChatWork
from predictors.compute.device.placement import HostCopy, LaunchMark
from predictors.errors import InvalidRequest, ServingError, StepFailed
from predictors.serving.job import Job
from tests.chat.injected_failures import fail_after_call, finish_with_repeats
from tests.chat.room import Room, chat, deltas_of, png, tokens_of
from tests.chat.test_paging import few_pages, run
from tests.chat.token_grammars import OneOf, OneOfMatcher, constrained_job, one_of, run_together

Jobs = Sequence[Job[ChatWork, ChatDelta]]
DRAWN = Sampling(temperature=1.5)
SAMPLED = Sampling(temperature=1.2, top_k=40, top_p=0.95, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def ahead(wild_checkpoint: Path) -> Room:
    return Room.open_ahead(wild_checkpoint, prefill_chunk=64)


@pytest.fixture(params=["plain", "ahead"])
def either(request: pytest.FixtureRequest, wild: Room, ahead: Room) -> Room:
    """Each step read at once, and one step ahead as on a GPU."""
    return wild if request.param == "plain" else ahead


LONG, SHORT, TREE = [range(300, 340)], [[5, 6, 7]], [[10, 11], [10, 12, 13], [20] * 9]
FREE: tuple[ChatRequest, ...] = (
    chat(png(1), "one", max_tokens=14, ignore_eos=True),
    chat("drawn", sampling=DRAWN, seed=7, max_tokens=10, ignore_eos=True),
    chat("sampled " * 20, sampling=SAMPLED, seed=8, max_tokens=9, ignore_eos=True),
    chat("bias", controls=Controls(logit_bias=((44, 3.0), (45, -100.0))), ignore_eos=True),
    chat("min_p", sampling=replace(DRAWN, min_p=0.3), seed=9, ignore_eos=True),
)
TOGETHER = (
    (FREE[0], None),
    (chat("a long list", sampling=DRAWN, seed=1, max_tokens=12), LONG),
    (FREE[1], None),
    (FREE[2], None),
    (chat(png(2), "a tree", sampling=SAMPLED, seed=2, max_tokens=12), TREE),
    (FREE[3], None),
    (chat("greedy", max_tokens=6, controls=Controls(logprobs=2)), SHORT),
    (FREE[4], None),
)  # fmt: skip


def jobs_of(room: Room) -> list[Job[ChatWork, ChatDelta]]:
    return [
        constrained_job(room, request, one_of(room, *choices) if choices else None)
        for request, choices in TOGETHER
    ]


@pytest.fixture(scope="module")
def alone(wild: Room) -> list[list[int]]:
    """The tokens of each of the eight alone, each step read at once."""
    jobs = jobs_of(wild)
    for job in jobs:
        run_together(wild, [job])
    return [tokens_of(job) for job in jobs]


# -- tokens --------------------------------------------------------------------------------------
def test_three_under_grammars_and_five_without_get_the_tokens_they_get_alone(
    either: Room, alone: list[list[int]]
) -> None:
    jobs = jobs_of(either)
    run_together(either, jobs)
    assert [tokens_of(job) for job in jobs] == alone
    end = next(iter(set(alone[4][-1:]) & either.model.end_tokens))
    assert alone[1] == list(range(300, 312))
    assert alone[4][:-1] in [[10, 11], [10, 12, 13], [20] * 9]
    assert alone[6][:-1] == [5, 6, 7]
    reasons = [deltas_of(job)[-1].finish_reason for job in jobs]
    assert [reasons[i] for i in (1, 4, 6)] == ["length", "stop", "stop"]
    assert end in either.model.end_tokens
    assert either.engine.describe()["captures_after_ready"] == 0


def test_rows_without_controls_get_the_tokens_of_before(
    either: Room, wild: Room, alone: list[list[int]]
) -> None:
    plain = [wild.answer(request) for request in FREE[:3]]
    assert [alone[0], alone[2], alone[3]] == plain
    assert either.answers(FREE[:3]) == plain


def test_jobs_that_come_and_leave_change_nothing(either: Room, alone: list[list[int]]) -> None:
    jobs = jobs_of(either)
    leaver = constrained_job(either, chat("leaves", max_tokens=20), one_of(either, *LONG))
    either.engine.admit(leaver)
    for job in jobs[:4]:
        either.engine.admit(job)
    for _ in range(3):
        either.engine.step(either.engine.active)
    either.engine.evict(leaver)
    for job in jobs[4:]:
        assert either.engine.admit(job)
        either.engine.step([*either.engine.active][::2])
    either.finish()
    assert [tokens_of(job) for job in jobs] == alone
    assert tokens_of(leaver) == list(range(300, 300 + len(tokens_of(leaver))))


def test_a_preempted_answer_goes_on_in_its_grammar(ahead: Room) -> None:
    trees = [[list(range(300 + i, 330 + i)), list(range(400, 426))] for i in range(4)]
    asked = [
        chat(f"tree {i}", sampling=DRAWN, seed=i, max_tokens=40, controls=Controls(logprobs=i))
        for i in range(4)
    ]
    alone, crowded = (
        [
            constrained_job(ahead, request, one_of(ahead, *tree))
            for request, tree in zip(asked, trees, strict=True)
        ]
        for _ in range(2)
    )
    run_together(ahead, alone)
    for job in crowded:
        job.work = replace(job.work, expected_tokens=1.0)
    preemptions = metrics.preemptions_total.labels("test")._value
    before = preemptions.get()
    with few_pages(ahead, 12):
        run(ahead, crowded)  # type: ignore[arg-type]
    assert preemptions.get() > before
    assert [tokens_of(job) for job in crowded] == [tokens_of(job) for job in alone]
    assert {tokens_of(job)[-1] for job in alone} <= ahead.model.end_tokens
    for job, other in zip(crowded, alone, strict=True):  # keys that are read again differ in bits
        pairs = zip(deltas_of(job), deltas_of(other), strict=True)
        assert all(
            ours.logprob == pytest.approx(theirs.logprob, abs=1e-2)
            for delta, expected in pairs
            for ours, theirs in zip(scores_of(delta), scores_of(expected), strict=True)
        )


# -- ends ----------------------------------------------------------------------------------------
def test_a_stop_token_ends_an_answer_also_for_a_caller_who_ignores_ends(either: Room) -> None:
    request = chat("end", max_tokens=12, ignore_eos=True)
    tokens = either.answer(request)
    stops = Controls(stop_token_ids=frozenset([tokens[4], 3]))
    job = either.start(replace(request, controls=stops))
    either.finish()
    assert tokens_of(job) == tokens[: tokens.index(tokens[4]) + 1]
    assert deltas_of(job)[-1].finish_reason == "stop"


def test_no_answer_ends_before_min_tokens(either: Room) -> None:
    ends = sorted(either.model.end_tokens)
    eager = Controls(logit_bias=tuple((end, 100.0) for end in ends))
    assert len(either.answer(chat("end", controls=eager))) == 1
    tokens = either.answer(chat("end", controls=replace(eager, min_tokens=5)))
    assert len(tokens) == 6
    assert tokens[-1] in ends
    assert not set(tokens[:-1]) & set(ends)


def test_a_complete_answer_ends_for_a_caller_who_ignores_ends_too(either: Room) -> None:
    request = chat("end", ignore_eos=True, controls=Controls(min_tokens=6))
    job = constrained_job(either, request, one_of(either, [5], [5, 6, 7]))
    run_together(either, [job])
    assert tokens_of(job)[:-1] == [5, 6, 7]  # `[5]` could end earlier
    assert deltas_of(job)[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("controls", "problem"),
    [
        (Controls(logit_bias=tuple((i % 800, 1.0) for i in range(MOST_BIASED + 1))), "logit_bias"),
        (Controls(stop_token_ids=frozenset(range(MOST_STOP_TOKENS + 1))), "stop_token_ids"),
        (Controls(logit_bias=((10**6, 1.0),)), "logit_bias"),
        (Controls(logit_bias=((-1, 1.0),)), "logit_bias"),
        (Controls(stop_token_ids=frozenset([832])), "stop_token_ids"),
        (Controls(min_tokens=9), "min_tokens"),
    ],
    ids=["many biases", "many stops", "large token", "negative token", "first unknown", "minimum"],
)
def test_controls_that_the_engine_can_not_have_are_refused_before_the_queue(
    wild: Room, controls: Controls, problem: str
) -> None:
    with pytest.raises(InvalidRequest, match=problem) as refused:
        wild.engine.validate(wild.job(chat("hi", controls=controls)).work)
    assert refused.value.param == problem


def test_as_many_controls_as_fit_are_served(wild: Room) -> None:
    vocab = wild.model.shape.vocab
    most = tuple((i, -100.0) for i in range(vocab) if i != 17)
    stops = frozenset(range(100, 100 + MOST_STOP_TOKENS))
    controls = Controls(logit_bias=most[:MOST_BIASED], min_tokens=8, stop_token_ids=stops)
    assert wild.answer(chat("hi", controls=controls)) == [17] * 8


# -- the order of a step -------------------------------------------------------------------------
def test_masks_are_made_while_the_forward_pass_runs(
    ahead: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    watch(monkeypatch, order, ChatRunner, "step_logits", "forward")
    watch(monkeypatch, order, ChatRunner, "prompt_logits", "prompt")
    watch(monkeypatch, order, HostCopy, "result", "read")
    watch(monkeypatch, order, OneOfMatcher, "accept", "accept")
    watch(monkeypatch, order, OneOfMatcher, "fill", "fill")
    watch(monkeypatch, order, TokenChooser, "choose_controlled", "choose")
    job = constrained_job(ahead, chat("hi", max_tokens=3), one_of(ahead, *LONG))
    run_together(ahead, [job])
    step = ["forward", "read", "accept", "fill", "choose"]
    assert order == ["prompt", "fill", "choose", *step, *step, "read", "accept"]


def test_a_step_without_controls_launches_what_it_did(
    ahead: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    watch(monkeypatch, order, ChatRunner, "step_logits", "forward")
    watch(monkeypatch, order, TokenChooser, "choose", "choose")
    watch(monkeypatch, order, HostCopy, "result", "read")
    for name in ("choose_controlled", "_score", "masks", "reset"):
        watch(monkeypatch, order, TokenChooser, name, name)
    watch(monkeypatch, order, ChatRunner, "mark", "mark")
    ahead.answers([chat("hi", max_tokens=3, ignore_eos=True)] * 2)
    # the prompts, two decode steps of which each reads the step before, and one that only reads
    assert order == ["choose", *["forward", "choose", "read"] * 2, "read"]


def test_only_groups_with_a_grammar_wait_for_tokens_and_only_once(
    ahead: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two decode passes in a step: the first has none, the second and third have one each."""
    order: list[str] = []
    monkeypatch.setattr(ahead.runner, "decode_widths", (8,))
    jobs = jobs_of(ahead)
    for job in jobs:
        assert ahead.engine.admit(job)
    for _ in range(6):
        ahead.engine.step(ahead.engine.active)
    monkeypatch.setattr(ahead.runner, "decode_widths", (2,))
    monkeypatch.setattr(
        ChatRunner, "step_logits", lambda self, rows: order.append("forward") or wide(self, rows)
    )
    wide = pad_to_eight
    watch(monkeypatch, order, HostCopy, "result", "read")
    ahead.engine.step(ahead.engine.active)
    reads = [i for i, each in enumerate(order) if each == "read"]
    assert order.count("forward") == len(ahead.engine.active) // 2
    monkeypatch.undo()
    ahead.finish()
    # scores arrive before the tokens; those are read after the first forward with a grammar
    assert order[0] == "forward"
    assert 0 < reads[0] < len(order) - 1


STEP_LOGITS = ChatRunner.step_logits


def pad_to_eight(runner: ChatRunner, rows: Any) -> Any:
    """The logits of a narrow group from the width whose rows are equal in bits."""
    widths, runner.decode_widths = runner.decode_widths, (8,)
    try:
        return STEP_LOGITS(runner, rows)
    finally:
        runner.decode_widths = widths


def watch(patch: pytest.MonkeyPatch, order: list[str], owner: Any, method: str, name: str) -> None:
    """Add `name` to `order` whenever the method is called."""
    original = getattr(owner, method)

    def watching(*args: Any, **more: Any) -> Any:
        order.append(name)
        return original(*args, **more)

    is_static = isinstance(owner.__dict__[method], staticmethod)
    patch.setattr(owner, method, staticmethod(watching) if is_static else watching)


def test_the_masks_of_a_pass_are_made_in_one_call(
    ahead: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all rows under grammars into one tensor, at every step, none for the others."""
    tensors: list[Any] = []
    calls: list[tuple[list[int], Any]] = []
    masks, fill = TokenChooser.masks, OneOfMatcher.fill

    def making(self: TokenChooser, count: int) -> Any:
        tensors.append(masks(self, count))
        return tensors[-1]

    def filling(rows: Sequence[tuple[OneOfMatcher, int]], words: MaskWords) -> Any:
        calls.append(([row for _, row in rows], words))
        return fill(rows, words)

    monkeypatch.setattr(TokenChooser, "masks", making)
    monkeypatch.setattr(OneOfMatcher, "fill", staticmethod(filling))
    jobs = [
        constrained_job(
            ahead, chat(f"row {i}", max_tokens=6), one_of(ahead, *LONG) if i % 2 else None
        )
        for i in range(6)
    ]
    run_together(ahead, jobs)
    assert all(rows == list(range(len(words))) for rows, words in calls)
    sizes = [len(rows) for rows, _ in calls]
    assert sum(sizes) == 3 * 6
    assert sizes.count(3) >= 3  # prompts end one after the other
    assert [words.ctypes.data for _, words in calls] == [made.data_ptr() for made in tensors]


@pytest.mark.parametrize("is_late", [True, False])
def test_a_mask_that_is_late_is_counted(
    ahead: Room, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    def late() -> float:
        labels = {"model": "test"}
        return REGISTRY.get_sample_value("predictors_late_grammar_masks_total", labels) or 0.0

    monkeypatch.setattr(LaunchMark, "is_passed", property(lambda self: is_late))
    before = late()
    job = constrained_job(ahead, chat("hi", max_tokens=4), one_of(ahead, *LONG))
    run_together(ahead, [job, ahead.job(FREE[1])])
    assert late() - before == 4 * is_late


# -- a step that fails ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (ChatRunner, "step_logits"),
        (ChatRunner, "decode_controlled"),
        (ChatRunner, "prefill_controlled"),
        (TokenChooser, "reset"),
        (TokenChooser, "choose_controlled"),
        (TokenChooser, "masks"),
        (OneOfMatcher, "write"),
        (ChatRunner, "copy"),
        (HostCopy, "result"),
    ],
)
@pytest.mark.parametrize(("at", "together"), [(1, True), (3, False)])
def test_a_step_that_raised_is_repeated_with_the_same_tokens(
    either: Room, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch, owner: Any,
    method: str, at: int, together: bool,
) -> None:  # fmt: skip
    chosen = (1, 4, 5, 6)
    jobs = [job for i, job in enumerate(jobs_of(either)) if i in chosen]
    calls = fail_after_call(monkeypatch, owner, method, at)
    for job in jobs:
        assert either.engine.admit(job)
    assert finish_with_repeats(either, jobs, together=together) == (len(calls) >= at)
    assert [tokens_of(job) for job in jobs] == [alone[i] for i in chosen]


# -- a grammar that dies -------------------------------------------------------------------------
class DyingMatcher(OneOfMatcher):
    """Dies after two tokens."""

    how = ""

    def accept(self, token: int) -> bool:
        return super().accept(token) and not (self.how == "accept" and len(self.taken) > 2)

    def write(self, words: MaskWords) -> ServingError | None:
        if self.how == "refuses" and len(self.taken) == 2:
            return InvalidRequest("the grammar is too complex")
        super().write(words)
        if self.how == "nothing" and len(self.taken) == 2:
            words[:] = 0
        return None


class Dying(OneOf):
    how = ""

    def matcher(self) -> OneOfMatcher:
        made = DyingMatcher(self)
        made.how = self.how
        return made


@pytest.mark.parametrize(
    ("how", "kind"),
    [("accept", StepFailed), ("nothing", StepFailed), ("refuses", InvalidRequest)],
)
def test_a_row_whose_grammar_dies_ends_alone(
    either: Room, alone: list[list[int]], how: str, kind: type[ServingError]
) -> None:
    jobs = jobs_of(either)[1:]
    grammar = Dying([tuple(range(300, 340))], either.model.end_tokens)
    grammar.how = how
    broken = constrained_job(either, chat("dies", max_tokens=9), grammar)
    free = either.pool.num_free
    run_together(either, [*jobs, broken])
    assert [tokens_of(job) for job in jobs] == alone[1:]
    assert tokens_of(broken) == [300, 301]
    assert isinstance(broken._error, kind)
    assert not either.engine.busy
    assert either.pool.num_free == free
