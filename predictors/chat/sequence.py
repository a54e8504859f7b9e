"""One admitted sequence and its growing answer. Knows its place on the device in numbers; computes
nothing.

Tokens stay on the device, so what was launched may be ahead of what was read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from predictors.chat.inputs import ChatWork
from predictors.chat.model import EncodedPicture
from predictors.chat.request import ChatDelta
from predictors.chat.runner import Row
from predictors.chat.token_choice import Choice
from predictors.serving.job import Job

ChatJob = Job[ChatWork, ChatDelta]


@dataclass(slots=True, eq=False)
class Reply:
    """One admitted job and its growing answer. Changed at the end of a step only."""

    job: ChatJob
    slot: int
    pages: tuple[int, ...]
    total: int
    """Tokens of the prompt."""
    names: tuple[bytes, ...] = ()
    """Of the prompt's pages that may be shared, see `prefixes`."""
    num_shared: int = 0
    """Of its first pages, those that somebody else has filled."""
    is_begun: bool = False
    """Whether any of its prompt was launched."""
    done: int = 0
    """Prompt tokens that are in the cache, or will be once what was launched has run."""
    launched: int = 0
    """Tokens of the answer that were launched."""
    answer: list[int] = field(default_factory=list)
    """Tokens of the answer that were read."""
    is_gone: bool = False
    """Whether it was evicted: what is still in flight for it is dropped."""
    embedded: dict[int, EncodedPicture] = field(
        default_factory=dict
    )  # picture's index -> its tokens
    first_token_at: float = 0.0
    last_token_at: float = 0.0

    @property
    def work(self) -> ChatWork:
        """What is wanted."""
        return self.job.work

    @property
    def is_launched(self) -> bool:
        """Whether all it may ever need was launched."""
        return self.launched >= self.job.work.max_tokens

    def describe(self) -> dict[str, object]:
        """Its tokens in numbers. Any thread."""
        most, made = self.work.max_tokens, len(self.answer)
        prompt = {"prompt_tokens": self.total, "prompt_done": self.done}
        return {"steps_done": made, "steps_left": most - made, **prompt}

    def choice(self) -> Choice:
        """How the next token that is not launched is chosen."""
        work = self.job.work
        return Choice(self.slot, work.sampling, work.seed, self.launched)

    def row(self) -> Row:
        """Its place in the next decode step: the newest token is not in the cache yet."""
        index, work = self.launched - 1, self.job.work
        position, length = work.next_position + index, self.total + index
        return Row(self.slot, index, position, length, self.pages, self.choice())
