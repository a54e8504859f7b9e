"""A small real grammar for tests: an answer is one of a few sequences of tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from predictors.chat.constraints import MaskWords
from predictors.chat.request import ChatDelta, ChatRequest
from predictors.chat.work import ChatWork
from predictors.errors import ServingError
from predictors.serving.job import Job
from tests.chat.room import Room


@dataclass
class OneOf:
    """Matches the sequences of `choices`; `ends` may follow each of them."""

    choices: Collection[tuple[int, ...]]
    ends: Collection[int]

    def matcher(self) -> OneOfMatcher:
        return OneOfMatcher(self)


@dataclass
class OneOfMatcher:
    grammar: OneOf
    taken: list[int] = field(default_factory=list)

    def _next(self) -> set[int]:
        n, found = len(self.taken), set[int]()
        for choice in self.grammar.choices:
            if choice[:n] == tuple(self.taken):
                found |= set(choice[n : n + 1]) if len(choice) > n else set(self.grammar.ends)
        return found

    def accept(self, token: int) -> bool:
        if token not in self._next():
            return False
        self.taken.append(token)
        return True

    @staticmethod
    def fill(
        rows: Sequence[tuple[OneOfMatcher, int]], words: MaskWords
    ) -> list[ServingError | None]:
        return [matcher.write(words[row]) for matcher, row in rows]

    def write(self, words: MaskWords) -> ServingError | None:
        """The mask of one row, and why there is none."""
        bits = words.view(np.uint32)
        bits.fill(0)
        for token in self._next():
            bits[token // 32] |= np.uint32(1 << token % 32)
        return None

    @property
    def is_over(self) -> bool:
        return self._next() <= set(self.grammar.ends)


def one_of(room: Room, *choices: Sequence[int]) -> OneOf:
    return OneOf([tuple(choice) for choice in choices], room.model.end_tokens)


def constrained_job(
    room: Room, request: ChatRequest, grammar: OneOf | None
) -> Job[ChatWork, ChatDelta]:
    """A job under a grammar that is not admitted yet."""
    return Job("test", replace(room.inputs.prepare(request), grammar=grammar))


def run_together(room: Room, jobs: Sequence[Job[ChatWork, ChatDelta]]) -> None:
    """Admit all of them, and step until none is left."""
    for job in jobs:
        room.engine.validate(job.work)
        assert room.engine.admit(job)
    room.finish()
