"""Validated chat requests and pieces of answers: frozen values, no wire formats and no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from predictors.chat.adapters.mix import UNADAPTED, AdapterMix
from predictors.chat.film import Film, FilmSize, file_digest, named_in_errors
from predictors.chat.grounding.boxes import PictureBox
from predictors.chat.pixel_bounds import PixelBounds
from predictors.protocol.answer_format import AnswerFormat
from predictors.protocol.openai.tool_calls import ToolCall
from predictors.protocol.openai.tool_fields import OfferedTools

GREEDY_BELOW = 1e-5  # a temperature below this is greedy, as in vLLM; Qwen's own default is 1e-6
CHARS_PER_TOKEN = 4  # of English text, about
LARGE_FORMAT = 8192  # characters of a schema, which compile in 10 ms
SHORT_CHARS, SHORT_PARTS = 1024, 16  # of a conversation that is assembled in less than 1 ms


@dataclass(frozen=True, slots=True)
class PictureSize:
    """The size in pixels at which a picture was read, after resizing, its prompt tokens, and the
    size of the caller's upright picture."""

    width: int
    height: int
    tokens: int
    file_width: int = 0
    file_height: int = 0


PromptSize = PictureSize | FilmSize


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture file as the caller sent it, not yet decoded or checked."""

    raw: bytes = field(repr=False)
    where: str = field(default="image", compare=False)
    """The field of the request that held it, as errors name it."""
    row: int | None = field(default=None, compare=False)
    """The row of a V2 request."""
    bounds: PixelBounds | None = None
    """None takes the server's."""

    @property
    def num_bytes(self) -> int:
        return len(self.raw)

    def digest(self) -> bytes:
        """128-bit hash of the file."""
        return file_digest(self.raw)

    def named_in_errors(self) -> AbstractContextManager[None]:
        """Adds the picture's field and row to an `InvalidRequest` of the block that has none."""
        return named_in_errors(self.where, self.row)


@dataclass(frozen=True, slots=True)
class Message:
    """One message: `role` is system, user, assistant or tool; `parts` are texts, pictures and films
    in order."""

    role: str
    parts: tuple[str | Picture | Film, ...]
    calls: tuple[ToolCall, ...] = ()
    """Calls of tools in an assistant's message."""
    call_id: str | None = None
    """The call that a tool's message answers."""
    calls_at: tuple[int, ...] = ()
    """For each call the number of parts before it; empty where all calls stand behind all parts."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen. Neutral values: top_k 0, top_p 1, min_p 0, penalties 1, 0 and 0."""

    temperature: float = 1.0
    """Values below `GREEDY_BELOW` are greedy."""
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens in prompt or answer, multiplies negative ones."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens in the answer, as OpenAI does."""
    frequency_penalty: float = 0.0
    """Taken from the logits of tokens in the answer, once for each time that the token came."""
    min_p: float = 0.0
    """Least share of the likeliest token's probability that a token needs."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True, slots=True)
class Controls:
    """Limits on tokens that few requests have. `logit_bias` are (token, number added to its
    logit), each token once. Before `min_tokens` no token comes that would end the answer; each of
    `stop_token_ids` ends it. `logprobs` is the number of alternatives beside the chosen token."""

    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None


NO_CONTROLS = Controls()


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How an answer's tokens become text: `include_stop` keeps the stop string that ended it,
    `keep_special` writes control tokens."""

    include_stop: bool = False
    keep_special: bool = False


USUAL_TEXT = TextOptions()


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How the chat template renders a conversation. `variables` is a JSON object of the template's
    own variables. The prompt ends with the opening of an answer (`opens_answer`), inside the last
    message (`continues_last`), or with the end of the last message."""

    variables: str = "{}"
    opens_answer: bool = True
    continues_last: bool = False


USUAL_PROMPT = PromptOptions()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request for one answer. `max_tokens` None takes the configured default, limited to the
    context; `NO_LIMIT` takes what the context leaves."""

    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    adapters: AdapterMix = UNADAPTED
    controls: Controls = NO_CONTROLS
    text: TextOptions = USUAL_TEXT
    answer_format: AnswerFormat | None = None
    tools: OfferedTools | None = None
    """None where no tool may be called."""
    prompt: PromptOptions = USUAL_PROMPT
    raw_prompt: str | tuple[int, ...] | None = None
    """A text or token ids in place of `messages`, without a chat template."""
    coordinates: str | None = None
    """Coordinates of the boxes beside the text; None for an answer without boxes."""

    @property
    def is_constrained(self) -> bool:
        """A grammar holds for its answer."""
        return self.answer_format is not None or self.tools is not None

    @property
    def has_large_format(self) -> bool:
        """Its format, or that of calls of its tools, may take a while to compile."""
        chars = 0 if self.tools is None else self.tools.num_chars
        if self.answer_format is not None:
            chars += len(self.answer_format.text)
        return chars > LARGE_FORMAT

    @property
    def is_short(self) -> bool:
        """Its prompt takes less than a millisecond to assemble: a few messages of little text."""
        messages, is_usual = self.messages, self.prompt.variables == USUAL_PROMPT.variables
        if self.is_constrained or not is_usual or self.num_chars > SHORT_CHARS:
            return False
        if self.raw_prompt is not None:
            return True
        if len(messages) > SHORT_PARTS or sum(len(m.parts) for m in messages) > SHORT_PARTS:
            return False
        are_texts = all(isinstance(part, str) for m in messages for part in m.parts)
        has_calls = any(m.calls or m.call_id is not None for m in messages)
        return are_texts and not has_calls

    @property
    def is_open(self) -> bool:
        """It names no number of tokens for its answer."""
        return self.max_tokens is None or self.max_tokens < 0

    @property
    def pictures(self) -> list[Picture]:
        return [p for m in self.messages for p in m.parts if isinstance(p, Picture)]

    @property
    def films(self) -> list[Film]:
        return [p for m in self.messages for p in m.parts if isinstance(p, Film)]

    @property
    def num_chars(self) -> int:
        """Characters of all texts, about; those of token ids are guessed."""
        if self.raw_prompt is not None:
            each = 1 if isinstance(self.raw_prompt, str) else CHARS_PER_TOKEN
            return each * len(self.raw_prompt)
        return chars_of(self.messages, self.tools)


@dataclass(slots=True)
class PromptReuse:
    """How many tokens of one prompt the prefix cache held; None where it is off, and before the
    prompt is read. The engine writes it."""

    cached_tokens: int | None = None


def chars_of(messages: Sequence[Message], tools: OfferedTools | None) -> int:
    """Characters of a conversation, without pictures."""
    count = 0 if tools is None else tools.num_chars
    for message in messages:
        for part in message.parts:
            if isinstance(part, str):
                count += len(part)
        for call in message.calls:
            count += len(call.arguments)
    return count


@dataclass(slots=True)
class ChatDelta:
    """A piece of an answer, not to be changed. The engine sets `tokens`; `AnswerReader` makes
    another with `text`.

    The last one has a `finish_reason`: `stop` (end token or stop string) or `length`.
    `completion_tokens` counts all tokens so far, the end token included. Not frozen: two are made
    for each token, and a frozen one takes ten times as long to make.
    """

    tokens: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    text: str = ""
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer: the natural logarithm of its probability, its rank from 1, and the
    likeliest tokens with theirs, all of the raw logits."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class ScoredDelta(ChatDelta):
    """A piece with the `scores` of its tokens, for requests that ask for logprobs."""

    scores: tuple[TokenLogprob, ...] = ()


@dataclass(slots=True)
class LastDelta(ChatDelta):
    """The last piece, with the sizes of the prompt's pictures and then of its films, in their
    order, the `scores` of its tokens where logprobs were asked for, and the boxes where they were.
    A type of its own: a field more would cost time for every token."""

    pictures: tuple[PromptSize, ...] = ()
    scores: tuple[TokenLogprob, ...] = ()
    cached_tokens: int | None = None
    """Prompt tokens that the prefix cache held; None where it is off."""
    boxes: tuple[PictureBox, ...] | None = None
    stop_text: str | None = None
    """The stop string that ended the answer; None where something else did."""


def scores_of(delta: ChatDelta) -> tuple[TokenLogprob, ...]:
    return delta.scores if isinstance(delta, ScoredDelta | LastDelta) else ()


def cached_tokens_of(last: ChatDelta) -> int | None:
    return last.cached_tokens if isinstance(last, LastDelta) else None


def pictures_of(last: ChatDelta) -> tuple[PromptSize, ...]:
    return last.pictures if isinstance(last, LastDelta) else ()


def boxes_of(last: ChatDelta) -> tuple[PictureBox, ...] | None:
    return last.boxes if isinstance(last, LastDelta) else None


def stop_text_of(last: ChatDelta) -> str | None:
    return last.stop_text if isinstance(last, LastDelta) else None
