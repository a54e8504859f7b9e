from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from predictors.chat.grammars import compiler as compiler_module
from predictors.chat.grammars import matcher as matcher_module
from predictors.chat.grammars.compiler import GRAMMAR_BYTES, GrammarCompiler
from predictors.errors import InvalidRequest
from predictors.protocol.answer_format import regex_format, schema_format
from tests.chat.grammars.walks import ENDS, VOCAB, allowed

ROOT = Path(__file__).resolve().parents[3]

DEEPEST = """
import threading
from tokenizers import Tokenizer
from predictors.chat.grammars.compiler import GrammarCompiler
from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.answer_format import check_schema, schema_format

threading.stack_size(0)
def chain(length):
    links = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(length)}
    return {"$defs": {**links, f"d{length}": {"type": "object"}}, "$ref": "#/$defs/d0"}

length = 4000
while True:
    try:
        check_schema("schema", chain(length))
        break
    except TooLarge:
        length -= 50
assert length >= 1500
tokenizer = Tokenizer.from_file("checkpoints/shapes-qwen-vl/tokenizer.json")
try:
    GrammarCompiler(tokenizer, 832, {802}).compile(schema_format("schema", chain(length)))
except InvalidRequest as error:
    print(error.message)
print("alive")
"""


def test_the_deepest_chain_of_references_does_not_end_the_process() -> None:
    """On a thread of the usual stack it does."""
    command = [sys.executable, "-c", DEEPEST]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert (ran.returncode, ran.stdout.splitlines()[-1:]) == (0, ["alive"]), ran.stderr[-500:]


def test_threads_that_are_started_meanwhile_have_the_usual_stack(
    compiler: GrammarCompiler,
) -> None:
    before = threading.stack_size()
    compiler.compile(regex_format("regex", "stack"))
    assert threading.stack_size() == before


def test_a_format_is_compiled_once_for_all_who_ask_at_once(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, release, count = threading.Event(), threading.Event(), 0
    now, waits = GrammarCompiler._compile_now, threading.Semaphore(0)

    class Watched(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            waits.release()
            return super().result(timeout)

    def slow(self: GrammarCompiler, format: object) -> object:
        nonlocal count
        count += 1
        started.set()
        assert release.wait(60)
        return now(self, format)  # type: ignore[arg-type]

    monkeypatch.setattr(GrammarCompiler, "_compile_now", slow)
    monkeypatch.setattr(compiler_module, "Future", Watched)
    asked = regex_format("regex", "once")
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(compiler.compile, asked)
        assert started.wait(60)
        others = [pool.submit(compiler.compile, asked) for _ in range(3)]
        for _ in others:  # one that asks after the end may get a lexer of its own
            assert waits.acquire(timeout=60)
        release.set()
        assert {each.result().compiled for each in (first, *others)} == {first.result().compiled}
    assert count == 1


def test_two_who_ask_at_once_are_refused_by_their_own_fields(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    now = GrammarCompiler._compile_now

    def together(self: GrammarCompiler, format: object) -> object:
        both.wait(60)
        return now(self, format)  # type: ignore[arg-type]

    monkeypatch.setattr(GrammarCompiler, "_compile_now", together)
    wheres = ("guided_regex", "regex")
    with ThreadPoolExecutor(2) as pool:
        refused = [pool.submit(compiler.compile, regex_format(each, "(?=y)")) for each in wheres]
        errors = [each.exception() for each in refused]
    assert [isinstance(error, InvalidRequest) and error.param for error in errors] == [*wheres]


def test_a_format_that_fails_is_not_kept(compiler: GrammarCompiler) -> None:
    for where in ("first", "second"):
        with pytest.raises(InvalidRequest) as caught:
            compiler.compile(regex_format(where, "(?=x)"))
        assert caught.value.param == where


def test_the_cache_is_bounded(tokenizer: Tokenizer) -> None:
    small = GrammarCompiler(tokenizer, VOCAB, ENDS, cache_bytes=3 * GRAMMAR_BYTES)
    for i in range(6):
        small.compile(regex_format("regex", f"a{{{i}}}"))
        assert 0 < small.cached_bytes <= 3 * GRAMMAR_BYTES


def test_a_grammar_is_lent_for_a_while_and_compiled_again(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = regex_format("regex", "lent")
    first = compiler.compile(asked).compiled
    assert compiler.compile(asked).compiled is first
    first.is_full = True
    grammar = compiler.compile(asked)
    second = grammar.compiled
    assert second is not first
    monkeypatch.setattr(matcher_module, "MAX_MASKS", 2)
    matcher = grammar.matcher()
    for _ in range(3):
        allowed(matcher)
    del grammar, matcher
    third = compiler.compile(asked).compiled
    assert third is not second
    answers = [compiler.compile(asked).compiled for _ in range(matcher_module.MAX_ANSWERS)]
    assert answers[-2] is third
    assert answers[-1] is not third


def test_answers_that_run_at_once_are_spread_over_a_lexer_per_thread(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matchers that share a lexer make their masks one after the other."""
    monkeypatch.setattr(compiler_module, "NUM_THREADS", 3)
    compiler = GrammarCompiler(tokenizer, VOCAB, ENDS)
    one, other = regex_format("regex", "one"), regex_format("regex", "other")
    running = [compiler.compile(one) for _ in range(7)]
    users = Counter(id(grammar.compiled) for grammar in running)
    assert sorted(users.values()) == [2, 2, 3]
    # another format is compiled once, since there are lexers enough
    assert len({id(compiler.compile(other).compiled) for _ in range(3)}) == 1
    del running
    # those that are free are taken first
    assert len({id(compiler.compile(one).compiled) for _ in range(3)}) == 1


def test_a_schema_of_another_key_order_is_another_format() -> None:
    one = schema_format("schema", {"properties": {"a": True, "b": True}})
    other = schema_format("elsewhere", {"properties": {"b": True, "a": True}})
    assert one != other
    assert one == schema_format("elsewhere", {"properties": {"a": True, "b": True}})
