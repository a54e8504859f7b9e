"""Validated chat requests and pieces of answers: frozen values, no wire formats and no tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from predictors.errors import InvalidRequest

MAX_SEED = 2**53 - 1
GREEDY_BELOW = 1e-5  # a temperature below this is greedy, as in vLLM; Qwen's own default is 1e-6


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture file as the caller sent it, not yet decoded or checked."""

    raw: bytes = field(repr=False)
    where: str = field(default="image", compare=False)
    """The field of the request that held it, as errors name it."""
    row: int | None = field(default=None, compare=False)
    """The row of a V2 request."""

    def digest(self) -> bytes:
        """128-bit hash of the file."""
        return hashlib.blake2b(self.raw, digest_size=16).digest()

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Adds the picture's field and row to an `InvalidRequest` of the block that has none."""
        try:
            yield
        except InvalidRequest as error:
            if error.param is not None:
                raise
            message = f"{self.where}: {error.message}"
            raise type(error)(message, param=self.where, row=self.row) from error


@dataclass(frozen=True, slots=True)
class Message:
    """One message: `role` is system, user or assistant; `parts` are texts and pictures in order."""

    role: str
    parts: tuple[str | Picture, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen. Neutral values: top_k 0, top_p 1, penalties 1, 0 and 0."""

    temperature: float = 1.0
    """Values below `GREEDY_BELOW` are greedy."""
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens in prompt or answer, multiplies negative ones."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens in the answer, as OpenAI does."""
    frequency_penalty: float = 0.0
    """The same, times the number of times the token came."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request for one answer. `seed` is 0 to `MAX_SEED`; `max_tokens` None takes the configured
    default, limited to the context."""

    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    @property
    def pictures(self) -> list[Picture]:
        return [p for m in self.messages for p in m.parts if isinstance(p, Picture)]

    @property
    def num_chars(self) -> int:
        return sum(len(p) for m in self.messages for p in m.parts if isinstance(p, str))


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of an answer. The engine sets `tokens`; `AnswerReader` adds `text`.

    The last one has a `finish_reason`: `stop` (end token or stop string) or `length`.
    `completion_tokens` counts all tokens so far, the end token included.
    """

    tokens: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    text: str = ""
    finish_reason: str | None = None
