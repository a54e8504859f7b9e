"""Compiles answer formats to grammars over a model's vocabulary. Any thread but the event loop."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from predictors.chat.grammars.matcher import Grammar
from predictors.compute.caches import ByteBoundedCache
from predictors.errors import InvalidRequest
from predictors.protocol.answer_format import AnswerFormat

CACHE_BYTES = 64 * 2**20


class GrammarCompiler:
    """Compiles for one vocabulary: `vocab` tokens, the rows of the model's head. Thread-safe."""

    def __init__(self, tokenizer: Any, vocab: int, end_tokens: Iterable[int]) -> None:
        self._vocab = vocab
        self._tokens = LLTokenizer(tokenizer.to_str(), n_vocab=vocab, eos_token=sorted(end_tokens))
        self._limits = LLParserLimits(verbose_errors=False)
        self._lock = threading.Lock()
        self._cache: ByteBoundedCache[AnswerFormat, Grammar]
        self._cache = ByteBoundedCache(CACHE_BYTES, lambda grammar: 2**16)

    def compile(self, format: AnswerFormat) -> Grammar:
        """The grammar of a format. Raises `InvalidRequest` that names `format.where`."""
        with self._lock:
            found = self._cache.get(format)
        if found is None:
            found = self._compile(format)
            with self._lock:
                self._cache.put(format, found)
        return found

    def _compile(self, format: AnswerFormat) -> Grammar:
        start = LLMatcher(self._tokens, _source(format), log_level=0, limits=self._limits)
        if start.is_error():
            raise InvalidRequest(f"{format.where} can't be compiled", param=format.where)
        grammar = Grammar(start)
        grammar.matcher().fill(np.zeros((self._vocab + 31) // 32, np.int32))
        return grammar


def _source(format: AnswerFormat) -> str:
    """The library's form of a format."""
    match format.kind:
        case "json_object":
            return '{"grammars":[{"json_schema":{"type":"object"}}]}'
        case "json_schema":
            return f'{{"grammars":[{{"json_schema":{format.text}}}]}}'
        case "regex":
            return str(LLMatcher.grammar_from_regex(format.text))
        case "choice":
            options = " | ".join(json.dumps(each) for each in json.loads(format.text))
            return f"start: {options}"
        case _:
            return format.text
