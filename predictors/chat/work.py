"""A request ready for the engine, and its cost in decode steps: a frozen value that the engine
thread reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from predictors.chat.adapters.mix import UNADAPTED, AdapterMix
from predictors.chat.constraints import AnswerGrammar
from predictors.chat.film import FilmSize
from predictors.chat.placing import PlacedPicture
from predictors.chat.request import (
    NO_CONTROLS,
    USUAL_TEXT,
    ChatRequest,
    Controls,
    PromptReuse,
    Sampling,
    TextOptions,
)

PROMPT_TOKENS_PER_STEP = 32
"""Prompt tokens that take about as long as one decode step."""


@dataclass(frozen=True, slots=True)
class ChatWork:
    """A request ready for the engine. `tokens` (n,) int64, `positions` (3, n) int64, both on the
    CPU.

    `next_position` is the rotary position of the first token of the answer.
    """

    tokens: Tensor = field(repr=False)
    positions: Tensor = field(repr=False)
    next_position: int
    pictures: tuple[PlacedPicture, ...]
    sampling: Sampling
    seed: int
    max_tokens: int
    stop: tuple[str, ...]
    ignore_eos: bool
    expected_tokens: float = 0.0
    """Expected tokens of the answer, learned from others like it; at most `max_tokens`."""
    is_open: bool = False
    """True if the request named no `max_tokens`."""
    adapters: AdapterMix = UNADAPTED
    coordinates: str | None = None
    films: tuple[FilmSize, ...] = ()
    """Sizes of the films, whose steps are among the pictures."""
    controls: Controls = NO_CONTROLS
    text: TextOptions = USUAL_TEXT
    grammar: AnswerGrammar | None = None
    """The grammar that the answer must follow."""
    reuse: PromptReuse = field(default_factory=PromptReuse, compare=False)

    @property
    def is_plain(self) -> bool:
        """True if its tokens need no controls, no grammar and no logprobs."""
        controls, min_p = self.controls, self.sampling.min_p
        is_usual = not controls.logit_bias and not controls.min_tokens and not min_p
        return is_usual and controls.logprobs is None and self.grammar is None

    def picture_key(self, picture: PlacedPicture) -> bytes:
        """Names the features of a picture of this work."""
        return picture.prepared.key + self.adapters.vision_key

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, pictures included."""
        return self.tokens.shape[0]  # `len` of a tensor takes three times as long

    @property
    def cost(self) -> float:
        """Expected time in decode steps, the prompt's included."""
        return self.cost_with(self.expected_tokens)

    @property
    def least_cost(self) -> float:
        """As `cost`, for the shortest answer: whatever lengths other answers have, this one is not
        refused as late for them."""
        return self.cost_with(least_tokens(self, self.max_tokens, self.grammar is not None))

    def cost_with(self, answer_tokens: float, read_again: int = 0) -> float:
        """As `cost`, for an answer of that many tokens, and `read_again` tokens that preemptions
        caused to be read again."""
        return answer_tokens + (self.num_prompt_tokens + read_again) / PROMPT_TOKENS_PER_STEP


def least_tokens(asked: ChatRequest | ChatWork, max_tokens: int, is_constrained: bool) -> int:
    """The fewest tokens that an answer may have: `max_tokens` if nothing can end it earlier."""
    may_end = not asked.ignore_eos or asked.stop or asked.controls.stop_token_ids or is_constrained
    return min(max(1, asked.controls.min_tokens), max_tokens) if may_end else max_tokens
