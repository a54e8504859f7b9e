"""Compiled passes with adapters: the same tokens, and nothing compiles once the engine is warm."""

from __future__ import annotations

from tests.chat.adapters.conftest import TABLES, Adapted, adapted
from tests.chat.room import CHECKPOINT, Room, chat, png

MIXES: tuple[tuple[str, ...], ...] = ((), ("words",), ("eyes",), ("both", "words"), ("both",))
ASKED = chat(png(1, 40, 40), "small picture", max_tokens=6, ignore_eos=True)


def test_adapters_compile_nothing_after_warming(adapters: Adapted) -> None:
    """Dynamo alone (`aot_eager`), with one adapter, with several, and without."""
    compiled = Room.open(CHECKPOINT, "aot_eager", **{**TABLES, "slots": 4, "prefill_chunk": 64})
    own = adapted(compiled, adapters.folders)
    expected = [adapters.room.answer(adapters.request(ASKED, *names)) for names in MIXES]
    requests = [own.request(ASKED, *names) for names in MIXES]
    assert compiled.answers(requests) == expected
    assert [compiled.answer(request) for request in requests] == expected
    assert compiled.engine.guard.check() == 0
