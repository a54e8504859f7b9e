"""One admitted sequence and its growing answer. Knows its place on the device in numbers; computes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from predictors.qwen_vl.inputs import ChatWork
from predictors.qwen_vl.request import ChatDelta
from predictors.qwen_vl.runner import Choice, Row
from predictors.serving.job import Job

ChatJob = Job[ChatWork, ChatDelta]


@dataclass(slots=True)
class Reply:
    """One admitted job and its growing answer. Changed at the end of a step only."""

    job: ChatJob
    slot: int
    pages: tuple[int, ...]
    done: int = 0
    answer: list[int] = field(default_factory=list)
    embedded: dict[int, Tensor] = field(default_factory=dict)  # picture's index -> its tokens
    first_token_at: float = 0.0
    last_token_at: float = 0.0

    @property
    def work(self) -> ChatWork:
        """What is wanted."""
        return self.job.work

    def describe(self) -> dict[str, object]:
        """Its tokens in numbers. Any thread."""
        most, made = self.work.max_tokens, len(self.answer)
        prompt = {"prompt_tokens": self.work.num_prompt_tokens, "prompt_done": self.done}
        return {"steps_done": made, "steps_left": most - made, **prompt}

    def choice(self) -> Choice:
        """How its next token is chosen."""
        return Choice(self.slot, self.work.sampling, self.work.seed, len(self.answer))

    def row(self) -> Row:
        """Its place in the next decode step: the newest token is not in the cache yet."""
        before = len(self.answer) - 1
        length = self.work.num_prompt_tokens + before
        return Row(self.slot, self.answer[-1], self.work.next_position + before, length, self.pages)
