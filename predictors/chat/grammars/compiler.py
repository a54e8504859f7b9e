"""Compiles answer formats to grammars over a model's vocabulary. Any thread but the event loop.

The library recurses once per level of a schema, references followed, so it runs on threads with
stacks of `STACK_BYTES`: with the usual eight megabytes a caller's schema could end the process.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Final
from weakref import WeakSet

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from predictors.chat.grammars.lark import choice_source, grammar_source
from predictors.chat.grammars.matcher import (
    NUM_THREADS,
    CompiledGrammar,
    Grammar,
    mask_threads,
)
from predictors.chat.grammars.patterns import check_pattern
from predictors.chat.grammars.schemas import ESCAPES, SPACING, grammar_schema
from predictors.chat.tools.call_grammar import ANSWER
from predictors.compute.caches import ByteBoundedCache
from predictors.errors import InvalidRequest
from predictors.protocol.answer_format import (
    CHOICE,
    GRAMMAR,
    JSON_OBJECT,
    JSON_SCHEMA,
    REGEX,
    AnswerFormat,
)

CACHE_BYTES = 64 * 2**20
STACK_BYTES = 512 * 2**20
"""Stack of the compiling threads, in address space: memory is used only as deep as a schema
goes."""
MAX_AT_ONCE = 2  # compilations
GRAMMAR_BYTES = 4 * 2**20
"""Memory of a small grammar whose lexer has met some answers."""
BYTES_PER_CHARACTER = 64  # of the library's form of a schema
MAX_LEXER_STATES = 64_000
"""Most lexer states of a grammar, about 600 bytes each: 40 MB."""
_IN_STRING: Final = r'[^"\\\x00-\x1F\x7F]'
SLICES: Final = (
    r"[\x20\x0A\x0D\x09]+",
    *(f"{_IN_STRING}{{1,{length}}}" for length in (3, 6, 10, 30)),
    f"{_IN_STRING}+",
)
"""Sets of tokens that the library allows as a whole where the grammar allows any text of the
pattern, which it looks for in this order. Without the short ones it walks through all tokens for
each of the last ten characters of a bounded string."""
LIMITS: Final[Mapping[str, Any]] = {
    "max_lexer_states": MAX_LEXER_STATES,
    "step_lexer_fuel": 100_000,  # 7 ms, says the library
    "verbose_errors": False,
}
REASONS: Final = (
    ("nsatisfiable", "no value satisfies it; relax bounds that contradict each other"),
    ("oneOf", "options of oneOf may overlap; use anyOf, or give each a property with a const"),
    ("circular", "a $ref with other keywords refers to itself; name the properties instead"),
    ("patternProp", "patterns of patternProperties may overlap; make them exclude each other"),
    ("determine if regex", "pattern can't be combined with minLength, maxLength or another one"),
    ("regex", "a pattern can't be read; look-around, \\b and back references are not supported"),
    ("too large", "it is too large; use fewer alternatives and allOf"),
    ("not present", "a $ref refers to nothing; it must be #/$defs/NAME"),
    ("Pointer", "a $ref refers to nothing; it must be #/$defs/NAME"),
    ("minProperties", "minProperties and maxProperties need every property to be required"),
    ("maxProperties", "minProperties and maxProperties need every property to be required"),
)
"""Advice for what the library says, by a part of it. Its words stay in the log."""
JSON_SIGN: Final = "%json"  # opens a schema in the library's notation
_lock_of_stacks = threading.Lock()


class GrammarCompiler:
    """Compiles for one vocabulary: `vocab` tokens, the rows of the model's head. Thread-safe.

    `tokenizer` is a `tokenizers.Tokenizer`. Making one takes two seconds for 151,936 tokens,
    in which no other thread of Python runs: it is made before the server listens.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocab: int,
        end_tokens: Iterable[int],
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._num_words = (vocab + 31) // 32
        for count in {1, NUM_THREADS}:
            mask_threads(count)  # started here, not in the first step that needs them
        given = tokenizer.to_str(), vocab, sorted(end_tokens), list(SLICES)
        self._tokens = LLTokenizer(*given)
        self._limits = LLParserLimits(**LIMITS)
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(MAX_AT_ONCE)
        self._pending: dict[Hashable, Future[CompiledGrammar]] = {}
        self._compiled: WeakSet[CompiledGrammar] = WeakSet()
        self._cache: ByteBoundedCache[AnswerFormat, tuple[list[CompiledGrammar], int]]
        self._cache = ByteBoundedCache(cache_bytes, lambda entry: entry[1])

    @property
    def cached_bytes(self) -> int:
        """About the memory of the grammars that are kept."""
        return self._cache.num_bytes

    def compile(self, format: AnswerFormat) -> Grammar:
        """The grammar of a format, for one answer; several threads that ask for one at once compile
        it once. Raises `InvalidRequest` that names `format.where`."""
        key = _pending_key(format)
        with self._lock:
            found = self._lendable(format)
            if found is not None:
                return found.lend()
            waiting = self._pending.get(key)
            if waiting is None:
                mine = self._pending[key] = Future[CompiledGrammar]()
        if waiting is not None:
            compiled = waiting.result()
            with self._lock:
                return compiled.lend()
        try:
            compiled = self._compile_now(format)
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._pending[key]
            kept = [*self._open(format), compiled]
            size = GRAMMAR_BYTES + BYTES_PER_CHARACTER * len(format.text)
            self._cache.put(format, (kept, size * len(kept)))
            self._compiled.add(compiled)
            grammar = compiled.lend()
        mine.set_result(compiled)
        return grammar

    def _open(self, format: AnswerFormat) -> list[CompiledGrammar]:
        found = self._cache.get(format)
        return [] if found is None else [each for each in found[0] if each.is_open]

    def _lendable(self, format: AnswerFormat) -> CompiledGrammar | None:
        """The one that fewest have. None where it must be compiled, or had better be once more:
        all of its lexers are in use, and fewer lexers than there are threads for masks."""
        kept = self._open(format)
        if not kept:
            return None
        least = min(kept, key=lambda each: each.num_users)
        if least.num_users and _pending_key(format) not in self._pending:
            num_busy = sum(each.num_users > 0 for each in self._compiled)
            if num_busy < NUM_THREADS:
                return None
        return least

    def _compile_now(self, format: AnswerFormat) -> CompiledGrammar:
        source = source_of(format)
        done: Future[LLMatcher] = Future()

        def run() -> None:
            try:
                done.set_result(self._start(source))
            # a panic of the library is no `Exception`
            except BaseException as error:  # noqa: BLE001
                done.set_exception(error)

        with self._slots:
            _deep_thread(run).join()
        failure = done.exception()
        if failure is not None:
            raise _refusal(format, "") from failure
        start = done.result()
        if start.is_error():
            raise _refusal(format, start.get_error())
        return CompiledGrammar(start)

    def _start(self, source: str) -> LLMatcher:
        """The grammar's first state, its first mask made: what fails at once fails here."""
        start = LLMatcher(self._tokens, source, log_level=0, limits=self._limits)
        if start.is_error():
            return start
        words = np.zeros(self._num_words, np.int32)
        first = start.deep_copy()
        first.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        return first if first.is_error() else start


def _pending_key(format: AnswerFormat) -> Hashable:
    """Formats that share a refusal too: it names their fields."""
    return format, format.where, tuple(format.fields.items())


def source_of(format: AnswerFormat) -> str:
    """The format in the library's notation. Raises `InvalidRequest`."""
    where, text = format.where, format.text
    if format.kind == JSON_OBJECT:
        return _json_source({"type": "object"})
    if format.kind == JSON_SCHEMA:
        return _json_source(grammar_schema(where, json.loads(text)))
    if format.kind == REGEX:
        check_pattern(where, text)
        return str(LLMatcher.grammar_from_regex(text))
    if format.kind == CHOICE:
        return choice_source(json.loads(text))
    if format.kind == GRAMMAR:
        return grammar_source(where, text)
    return "\n".join(_checked_line(line, format.fields) for line in text.split("\n"))


def _checked_line(line: str, fields: Mapping[str, str]) -> str:
    """A line of our own grammar of tools; a schema in it is a caller's, of the field that `fields`
    has for its rule."""
    rule, sign, text = line.partition(f": {JSON_SIGN} ")
    if not sign:
        return line
    schema = json.loads(text)
    read = grammar_schema(fields[rule], schema)
    # arguments have spacing of their own, an answer does not
    style = ESCAPES | (SPACING if rule == ANSWER else schema["x-guidance"])
    return f"{rule}{sign}{json.dumps({**read, 'x-guidance': style}, ensure_ascii=False)}"


def _json_source(schema: Mapping[str, Any]) -> str:
    whole = {"x-guidance": ESCAPES | SPACING, **schema}
    return json.dumps({"grammars": [{"json_schema": whole}]}, ensure_ascii=False)


def _deep_thread(run: Any) -> threading.Thread:
    """A started thread with a large stack. The size is the process's until it has started."""
    with _lock_of_stacks:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    return thread


def _refusal(format: AnswerFormat, said: str) -> InvalidRequest:
    """The library's failure in our words."""
    advice = next((advice for part, advice in REASONS if part in said), "simplify it")
    message = f"{format.where} can't be turned into a grammar: {advice}"
    refusal = InvalidRequest(message, param=format.where)
    refusal.__cause__ = ValueError(said)
    return refusal
