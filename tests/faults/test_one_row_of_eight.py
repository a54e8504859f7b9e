"""One request of eight meets a bug or runs out of memory, in each stage of both models: it alone is
told so, the seven others get the bytes that they get alone, and nothing of it stays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from predictors.chat.chunks import ChunkEncoder
from tests.faults.rooms import (
    BREAKS,
    CULPRIT,
    IS_THOROUGH,
    ROWS,
    STEPS,
    TOKENS,
    Answers,
    Pictures,
    Reply,
    Room,
    picture_of,
    raising,
    serving_both,
)
from tests.http.echo import Running

Fault = Callable[[Any, pytest.MonkeyPatch, Exception], None]
BUG = KeyError("what was not expected")
INTERNAL = "internal error"
ALONE = "this request made the engine fail; others were not affected"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving_both() as found:
        yield found


@pytest.fixture(scope="module")
def pictures(running: Running) -> Pictures:
    return Pictures(running)


@pytest.fixture(scope="module")
def answers(running: Running) -> Answers:
    return Answers(running)


@pytest.fixture(scope="module")
def alone(pictures: Pictures, answers: Answers) -> dict[str, list[Reply]]:
    """Each row's reply when nothing else runs, the culprit's while nothing is broken."""
    found = {
        room.model: [room.ask(i, breaks=i == CULPRIT) for i in range(ROWS)]
        for room in (pictures, answers)
    }
    for replies in found.values():
        assert [status for status, _ in replies] == [200] * ROWS
        assert len({text for _, text in replies}) > ROWS // 2  # they do differ
    return found


def room_of(model: str, pictures: Pictures, answers: Answers) -> Room:
    return pictures if model == "flux" else answers


# -- a bug in one stage ----------------------------------------------------------------------------
def in_flux_tokenizer(room: Pictures, patch: pytest.MonkeyPatch, error: Exception) -> None:
    model = room.predictor._preparer._model
    patch.setattr(model, "tokenize", raising(model.tokenize, lambda text, _: BREAKS in text, error))


def in_text_encoder(room: Pictures, patch: pytest.MonkeyPatch, error: Exception) -> None:
    runner = room.engine.runner
    patch.setattr(runner, "encode", raising(runner.encode, room.broken_prompt, error))
    # the prompt was read before, without the fault
    room.engine._prompts = type(room.engine._prompts)(2**20, lambda each: each.num_bytes)


def in_denoise_step(room: Pictures, patch: pytest.MonkeyPatch, error: Exception) -> None:
    runner = room.engine.runner
    broken = lambda states, *_: any(map(room.breaks, states))  # noqa: E731
    patch.setattr(runner, "denoise", raising(runner.denoise, broken, error))


def in_vae(room: Pictures, patch: pytest.MonkeyPatch, error: Exception) -> None:
    runner = room.engine.runner
    patch.setattr(runner, "decode", raising(runner.decode, room.breaks, error))


def in_png_encoder(room: Pictures, patch: pytest.MonkeyPatch, error: Exception) -> None:
    kind = type(room.predictor._codec)
    broken = lambda _, __, rows: any(BREAKS in r.request.prompt for r in rows)  # noqa: E731
    patch.setattr(kind, "encode_v2", raising(kind.encode_v2, broken, error))


def in_chat_tokenizer(room: Answers, patch: pytest.MonkeyPatch, error: Exception) -> None:
    preparer = room.predictor._preparer
    broken = lambda messages, *_: any(BREAKS in str(m.parts) for m in messages)  # noqa: E731
    patch.setattr(preparer, "tokens_of", raising(preparer.tokens_of, broken, error))


def in_picture_worker(room: Answers, patch: pytest.MonkeyPatch, error: Exception) -> None:
    forget_pictures(room)
    workers, raw = room.predictor.workers, picture_of(CULPRIT, breaks=True)
    broken = lambda _, found, *args, **more: found == raw  # noqa: E731
    patch.setattr(workers, "run_within", raising(workers.run_within, broken, error))


def in_processor(room: Answers, patch: pytest.MonkeyPatch, error: Exception) -> None:
    forget_pictures(room)
    preparer, raw = room.predictor._preparer, picture_of(CULPRIT, breaks=True)
    broken = lambda picture, *_: picture.raw == raw  # noqa: E731
    patch.setattr(preparer, "prepare_pixels", raising(preparer.prepare_pixels, broken, error))


def in_vision_tower(room: Answers, patch: pytest.MonkeyPatch, error: Exception) -> None:
    runner, cache = room.engine._launcher.pictures, room.engine._picture_cache
    patch.setattr(runner, "encode", raising(runner.encode, room.broken_picture, error))
    cache.close()


def in_prefill(room: Answers, patch: pytest.MonkeyPatch, error: Exception) -> None:
    runner = room.engine._launcher.runner
    broken = lambda parts, _: room.breaks([part.slot for part in parts])  # noqa: E731
    patch.setattr(runner, "prefill", raising(runner.prefill, broken, error))


def in_decode_step(room: Answers, patch: pytest.MonkeyPatch, error: Exception) -> None:
    runner = room.engine._launcher.runner
    broken = lambda rows: room.breaks(rows.ints[0].tolist())  # noqa: E731
    patch.setattr(runner, "decode", raising(runner.decode, broken, error))


def in_detokenizer(room: Answers, patch: pytest.MonkeyPatch, error: Exception) -> None:
    make = room.predictor.reader

    def reader(work: Any) -> Any:
        made = make(work)
        if any(work is broken for broken in room.broken_works):
            broken = lambda reader, _: reader is made  # noqa: E731
            patch.setattr(type(made), "feed", raising(type(made).feed, broken, error))
        return made

    patch.setattr(room.predictor, "reader", reader)


def in_answer_encoder(room: Answers, patch: pytest.MonkeyPatch, error: Exception) -> None:
    broken = lambda encoder, _: BREAKS in str(encoder._body)  # noqa: E731
    patch.setattr(ChunkEncoder, "whole", raising(ChunkEncoder.whole, broken, error))


def forget_pictures(room: Answers) -> None:
    cache = room.predictor._preparer._cache
    room.predictor._preparer._cache = type(cache)(2**20, lambda picture: picture.values.nbytes)


BEFORE, INSIDE, AFTER = (ROWS - 1, INTERNAL), (ROWS, ALONE), (ROWS, INTERNAL)
"""Of the queue: how many reach the engine, and what the culprit is told."""
STAGES: dict[str, tuple[str, Fault, tuple[int, str]]] = {
    "flux: tokenizer": ("flux", in_flux_tokenizer, BEFORE),
    "flux: text encoder": ("flux", in_text_encoder, INSIDE),
    "flux: denoise step": ("flux", in_denoise_step, INSIDE),
    "flux: VAE": ("flux", in_vae, INSIDE),
    "flux: PNG encoder": ("flux", in_png_encoder, AFTER),
    "qwen: tokenizer": ("qwen-vl", in_chat_tokenizer, BEFORE),
    "qwen: worker that decodes": ("qwen-vl", in_picture_worker, BEFORE),
    "qwen: processor": ("qwen-vl", in_processor, BEFORE),
    "qwen: vision tower": ("qwen-vl", in_vision_tower, INSIDE),
    "qwen: prefill": ("qwen-vl", in_prefill, INSIDE),
    "qwen: decode step": ("qwen-vl", in_decode_step, INSIDE),
    "qwen: detokenizer": ("qwen-vl", in_detokenizer, AFTER),
    "qwen: encoder of the answer": ("qwen-vl", in_answer_encoder, AFTER),
}


@pytest.mark.parametrize(("model", "fault", "expected"), STAGES.values(), ids=STAGES)
def test_a_bug_in_one_stage_fails_one_request_of_eight(
    pictures: Pictures,
    answers: Answers,
    alone: dict[str, list[Reply]],
    model: str,
    fault: Fault,
    expected: tuple[int, str],
) -> None:
    room = room_of(model, pictures, answers)
    accepted, said = expected
    with pytest.MonkeyPatch.context() as patch:
        room.watch(patch)
        fault(room, patch, BUG)
        replies = room.ask_all(accepted=accepted)
        room.wait_answered()
    others = [i for i in range(ROWS) if i != CULPRIT]
    assert [replies[i] for i in others] == [alone[model][i] for i in others]
    status, message = replies[CULPRIT]
    assert status == 500
    assert message.startswith(said)
    assert str(BUG) not in message
    unharmed(room, alone)


def unharmed(room: Room, alone: dict[str, list[Reply]]) -> None:
    """Ready at once, nothing held, and the request that broke is answered as ever."""
    room.wait_answered()
    assert room.host.is_ready
    assert room.engine.active == []
    assert room.ask(CULPRIT, breaks=True) == alone[room.model][CULPRIT]


# -- out of memory ---------------------------------------------------------------------------------
class Memory:
    """From the `first` pass on, `times` passes of more than `width` rows do not fit."""

    def __init__(self, first: int, width: int, times: int) -> None:
        self._first, self._width, self._times = first, width, times
        self.passes = self.failed = 0
        self._lock = threading.Lock()

    def is_full(self, rows: Any, *_: Any) -> bool:
        with self._lock:
            self.passes += 1
            is_due = self.passes >= self._first and len(rows) > self._width
            if not is_due or self.failed >= self._times:
                return False
            self.failed += 1
            return True


PASS = {"flux": ("runner", "denoise"), "qwen-vl": ("runner", "decode")}
MOMENTS = {
    "the first": 1,
    "one in the middle": 2,
    "the last": {"flux": STEPS, "qwen-vl": TOKENS - 1},
}
MEMORY = {"a quarter fits": (ROWS // 4, 10_000)}
if IS_THOROUGH:
    MEMORY |= {"half fits": (ROWS // 2, 1), "one fits": (1, 10_000)}


@pytest.mark.parametrize("case", MEMORY)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("model", PASS)
def test_a_step_out_of_memory_is_halved_and_no_byte_changes(
    pictures: Pictures,
    answers: Answers,
    alone: dict[str, list[Reply]],
    model: str,
    moment: str,
    case: str,
) -> None:
    room = room_of(model, pictures, answers)
    when = MOMENTS[moment]
    first = when if isinstance(when, int) else when[model]
    room.host.loop._cap.reset(None)  # what earlier cases taught
    memory = Memory(first, *MEMORY[case])
    runner = room.engine.runner if model == "flux" else room.engine._launcher.runner
    name = PASS[model][1]
    with pytest.MonkeyPatch.context() as patch:
        full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        patch.setattr(runner, name, raising(getattr(runner, name), memory.is_full, full))
        replies = room.ask_all()
    assert memory.failed >= 1
    assert replies == alone[model]
    unharmed(room, alone)


LARGE: dict[str, tuple[str, Fault]] = {
    "flux: VAE": ("flux", in_vae),
    "qwen: vision tower": ("qwen-vl", in_vision_tower),
}
if IS_THOROUGH:
    LARGE |= {
        "flux: text encoder": ("flux", in_text_encoder),
        "flux: denoise step": ("flux", in_denoise_step),
        "qwen: prefill": ("qwen-vl", in_prefill),
        "qwen: decode step": ("qwen-vl", in_decode_step),
    }


@pytest.mark.parametrize(("model", "fault"), LARGE.values(), ids=LARGE)
def test_a_row_that_never_fits_is_out_of_memory_alone(
    pictures: Pictures, answers: Answers, alone: dict[str, list[Reply]], model: str, fault: Fault
) -> None:
    room = room_of(model, pictures, answers)
    with pytest.MonkeyPatch.context() as patch:
        room.watch(patch)
        fault(room, patch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB"))
        replies = room.ask_all()
    others = [i for i in range(ROWS) if i != CULPRIT]
    assert [replies[i] for i in others] == [alone[model][i] for i in others]
    too_large = "the device has no memory for this request, even alone; make it smaller"
    assert replies[CULPRIT] == (503, too_large)
    unharmed(room, alone)
