"""Random schemas, patterns, grammars and tool definitions against a real server: an answer or a
documented refusal, and an event loop that goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import httpx

from predictors.chat.grammars.schemas import ANNOTATIONS, FORMATS, REFUSED, TYPES
from tests.fuzz.findings import Finding
from tests.fuzz.http_streams import mutate
from tests.http.echo import Running

PART = "formats"
MOST_LOOP_CPU_S = 0.05
TICK_S = 0.005
STATUSES = {200, 400, 404, 413}  # a changed body may name another model
NUMBERS = (2, 3, 7, 0, 1, -1, 0.5, 0.1, 1e-9, 100, 10**6, 2**31, 2**64, -(10**18), 1e308, 12345.678)
TEXTS = (
    "",
    "a",
    "name",
    "é漢😀",
    '"\\\n\u0000',
    "x" * 60,
    "#",
    "/",
    "<|im_end|>",
    "$ref",
    "k" * 3000,
)
PATTERNS = (
    "a+", "^[a-z]{1,8}$", r"[0-9]+\.[0-9]{2}", "(a|b)*a(a|b){20}",
    "(a{1,90}){1,90}", "a{1000000}", "(?=a)", "(", "[",
    r"\p{L}{1,9}", ".*", "(?x)a", r"(a)\1", "^(.*a){9}$", "[^\\x00-\\U0010ffff]", "",
)  # fmt: skip
RULES = (
    'start: "a"', 'start: a\na: b\nb: "x" | a', "start: /[0-9]+/", 'start: start start | "a"',
    'root ::= "a" [0-9]+', "start: <|im_start|>", "start: %json {}", 'start: ("a"{1,900}){1,900}',
    "start: (", "x: y", '%import common.INT\nstart: INT', '%ignore / */\nstart: "a" "b"', "@@@",
    "start: A\nA: ~/a/ & /b/", 'a[stop="x"]: /b/\nstart: a',
)  # fmt: skip


class SchemaMaker:
    """Random JSON Schemas, half of them of parts that are right by themselves: the first three of
    each list."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._is_right = random.random() < 0.5
        self._left = random.choice((3, 10, 40, 200))  # subschemas

    def _pick(self, options: Sequence[Any]) -> Any:
        return self._random.choice(options[:3] if self._is_right else options)

    def schema(self, depth: int = 0) -> Any:
        random = self._random
        self._left -= 1
        if self._left <= 0 or depth > random.choice((4, 8, 80)) or random.random() < 0.03:
            return self._pick((True, {}, {"type": "null"}, {"$ref": "#"}, self.value()))
        made: dict[str, Any] = {}
        for _ in range(random.choice((1, 1, 2, 3))):
            makers = self._makers[:-1] if self._is_right else self._makers
            random.choice(makers)(self, made, depth)
        if depth == 0 and (self._is_right or random.random() < 0.5):
            made["$defs"] = {name: self.schema(1) for name in ("a", "b")}
        return made

    def value(self, depth: int = 0) -> Any:
        kind = self._random.randrange(7 if depth < 3 else 5)
        if kind == 5:
            return [self.value(depth + 1) for _ in range(self._random.randrange(4))]
        if kind == 6:
            return {self._name(): self.value(depth + 1) for _ in range(self._random.randrange(4))}
        return (None, True, self._pick(NUMBERS), self._name(), False)[kind]

    def _name(self) -> str:
        return str(self._pick(TEXTS))

    def _number(self, made: dict[str, Any], depth: int) -> None:
        made["type"] = self._random.choice(("integer", "number"))
        names = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
        for name in self._random.sample(names, 2):
            made[name] = self._pick((*NUMBERS, self.value()))

    def _string(self, made: dict[str, Any], depth: int) -> None:
        made["type"] = "string"
        name = self._random.choice(("minLength", "maxLength", "pattern", "format"))
        choices = {"pattern": PATTERNS, "format": (*FORMATS, "binary", 3)}.get(name, NUMBERS)
        made[name] = self._pick(tuple(choices))

    def _array(self, made: dict[str, Any], depth: int) -> None:
        made["type"] = "array"
        made["items"] = self.schema(depth + 1)
        made[self._random.choice(("minItems", "maxItems"))] = self._pick(NUMBERS)
        if self._random.random() < 0.3:
            made["prefixItems"] = self._several(depth)

    def _object(self, made: dict[str, Any], depth: int) -> None:
        names = [f"p{i}" for i in range(self._pick((1, 3, 9, 300)))] + [self._name()]
        made["type"] = "object"
        made["properties"] = {name: self.schema(depth + 1) for name in names}
        made["required"] = [name for name in names if self._random.random() < 0.7]
        if self._random.random() < 0.7:
            made["additionalProperties"] = self._random.choice((False, True, {}))

    def _map(self, made: dict[str, Any], depth: int) -> None:
        made["patternProperties"] = {self._pick(PATTERNS): self.schema(depth + 1)}
        made["minProperties"] = self._pick((1, 0, 1, *NUMBERS))

    def _union(self, made: dict[str, Any], depth: int) -> None:
        made[self._random.choice(("anyOf", "oneOf", "allOf"))] = self._several(depth)

    def _several(self, depth: int) -> list[Any]:
        return [self.schema(depth + 1) for _ in range(self._pick((1, 2, 3, 0, 12)))]

    def _reference(self, made: dict[str, Any], depth: int) -> None:
        targets = ("#/$defs/a", "#/$defs/b", "#", "#/$defs/none", "http://x/y", "a", "#/x/%zz", 3)
        made["$ref"] = self._pick(targets)

    def _plain(self, made: dict[str, Any], depth: int) -> None:
        count = self._pick((1, 3, 30, 1200))
        made["enum"] = [self.value() for _ in range(count)]

    def _other(self, made: dict[str, Any], depth: int) -> None:
        names = (*REFUSED, *ANNOTATIONS, "const", "type", "required", "x-guidance", "maxlength")
        made[self._random.choice(names)] = self._random.choice((self.value(), [*TYPES], True))

    _makers: tuple[Callable[[SchemaMaker, dict[str, Any], int], None], ...] = (
        _number, _string, _array, _object, _map, _union, _reference, _plain, _other,
    )  # fmt: skip


def make_body(seed: int, case: int) -> bytes:
    """The body of a chat: with a format, or with tools."""
    random = Random(f"{seed}:{PART}:{case}")
    make = SchemaMaker(random)
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": make.schema()}}
    tool = {"type": "function", "function": {"name": "f", "parameters": make.schema()}}
    offered = {
        "tools": [tool] * random.choice((1, 1, 2)),
        "tool_choice": random.choice(("auto", "required", "none")),
    }
    fields: dict[str, Any] = random.choice(
        (
            *({"response_format": named},) * 4,
            *(offered,) * 3,
            {"guided_json": make.schema()},
            {"guided_json": json.dumps(make.schema())},
            {"structured_outputs": {"regex": random.choice(PATTERNS)}},
            {"guided_regex": "".join(random.choices(PATTERNS, k=2))},
            {"guided_grammar": random.choice(RULES)},
            {"guided_grammar": "\n".join(random.choices(RULES, k=3))},
            {"guided_choice": [make.value() for _ in range(random.randrange(5))]},
            {**offered, "response_format": named},
        )
    )
    body = {
        "model": "qwen-vl",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": random.choice((1, 4, 12)),
        "temperature": random.choice((0, 1.5)),
        **fields,
    }
    raw = json.dumps(body).encode()
    return mutate(random, raw) if random.random() < 0.1 else raw


@contextmanager
def watched_loop(running: Running, most: list[float]) -> Iterator[None]:
    """Adds to `most` the longest CPU time of the loop's thread between two ticks of a task: a slow
    machine does not lengthen it."""
    loop = running.server._loop
    assert loop is not None

    async def tick() -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.thread_time()
            most[0] = max(most[0], now - before)
            before = now

    task = asyncio.run_coroutine_threadsafe(tick(), loop)
    try:
        yield
    finally:
        task.cancel()


def run(running: Running, seed: int, cases: int) -> tuple[list[Finding], Counter[str]]:
    """Findings, and answers by status beside the longest hold of the loop in milliseconds."""
    found, counts, most = [], Counter[str](), [0.0]
    with watched_loop(running, most), httpx.Client(base_url=running.url, timeout=120.0) as http:
        for case in range(cases):
            raw, most[0] = make_body(seed, case), 0.0
            answer = http.post(
                "/v1/chat/completions", content=raw, headers={"content-type": "application/json"}
            )
            counts[str(answer.status_code)] += 1
            held = round(most[0] * 1000)
            counts["loop ms"] = max(counts["loop ms"], held)
            problem = ""
            if answer.status_code not in STATUSES:
                problem = f"status {answer.status_code}: {answer.text[:300]}"
            elif most[0] > MOST_LOOP_CPU_S:
                problem = f"the loop was held for {held} ms"
            if problem:
                found.append(Finding(PART, "status", seed, case, problem, raw))
    return found, counts
