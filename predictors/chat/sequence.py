"""A job between admission and its last token, and the metrics of such jobs.

Tokens stay on the device from step to step, so a sequence counts both the tokens that were launched
and those that were read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from predictors import metrics
from predictors.chat.adapters.changes import SlotScales
from predictors.chat.choices import TokenChoice
from predictors.chat.constraints import Constraint
from predictors.chat.model import EncodedPicture
from predictors.chat.request import ChatDelta
from predictors.chat.work import ChatWork
from predictors.serving.job import Job

ChatJob = Job[ChatWork, ChatDelta]

SERIES = metrics.ModelSeries(
    operations=("infer", "chat", "responses", "completions", "tokenize", "detokenize"),
    anthropic=("messages", "count_tokens"),
    stages=("receive", "prepare", "vision_encode", "prefill", "decode", "detokenize"),
    caches=("vision_embedding", "prefix"),
    own={
        metrics.ttft_seconds: ((),),
        metrics.itl_seconds: ((),),
        metrics.prompt_tokens_total: ((),),
        metrics.vision_tokens_total: ((),),
        metrics.generation_tokens_total: ((),),
        metrics.request_prompt_tokens: ((),),
        metrics.request_generation_tokens: ((),),
        metrics.input_image_pixels: ((),),
        metrics.kv_cache_usage_ratio: ((),),
        metrics.loras_loaded: ((),),
        metrics.prefill_size: ((),),
        metrics.preemptions_total: ((),),
        metrics.preempted_tokens_total: ((),),
        metrics.late_masks_total: ((),),
    },
)


def end_tokens_of(work: ChatWork, model_ends: frozenset[int]) -> frozenset[int]:
    """The tokens that end the answer. A caller may ignore the model's end tokens, but not where a
    grammar says that the answer is over."""
    is_open = work.ignore_eos and work.grammar is None
    ends = frozenset[int]() if is_open else model_ends
    return ends | work.controls.stop_token_ids


def constraint_of(work: ChatWork, ends: frozenset[int]) -> Constraint | None:
    """A new state of the answer's grammar; None without one. `ends` are of `end_tokens_of`."""
    if work.grammar is None:
        return None
    stops, least = work.controls.stop_token_ids, work.controls.min_tokens
    ignored = ends - stops if work.ignore_eos else frozenset[int]()
    return Constraint(work.grammar.matcher(), ends, ignored, least)


@dataclass(slots=True, eq=False)
class Sequence:
    """One admitted job and its growing answer. Changed on the engine thread, after the part of a
    step that can fail."""

    job: ChatJob
    slot: int
    num_prompt_tokens: int
    end_tokens: frozenset[int]
    """Each of them ends the answer."""
    names: tuple[bytes, ...] = ()
    """Names of the prompt's pages that may be shared, see `kv_cache.page_names`."""
    pages: tuple[int, ...] = ()
    """Pages of the KV cache, in order; empty while it waits for pages."""
    answer_room: int = 0
    """Tokens of the answer that fit into its pages, at most `max_tokens`."""
    to_prefill: int = 0
    """Tokens to read before it decodes: the prompt, and after a preemption its answer so far."""
    prefill_again: tuple[Tensor, Tensor] | None = None
    """After a preemption: tokens and rotary positions of prompt and answer, as in `ChatWork`."""
    num_lost: int = 0
    """Tokens that left the cache in preemptions and have to be read again."""
    num_shared: int = 0
    """Number of its first pages that another sequence has filled."""
    language_adapters: SlotScales = ()
    vision_adapters: SlotScales = ()
    is_begun: bool = False
    """True once a chunk of `to_prefill` was launched."""
    num_prefilled: int = 0
    """Tokens of `to_prefill` in the cache, or that will be once the launched work has run."""
    num_launched: int = 0
    """Tokens of the answer that were launched on the device."""
    answer: list[int] = field(default_factory=list)
    """Tokens of the answer that have reached the host."""
    is_plain: bool = True
    """Its tokens need no controls, no grammar and no logprobs."""
    constraint: Constraint | None = None
    """The state of its grammar; None without one."""
    last_decode_step: int = 0
    """Number of the step in which it last decoded."""
    is_evicted: bool = False
    """Tokens in flight for an evicted sequence are dropped."""
    pictures: dict[int, EncodedPicture] = field(default_factory=dict)
    """Encoded pictures by their index in the prompt, until the prompt is read."""
    first_token_at: float = 0.0
    last_token_at: float = 0.0

    @property
    def work(self) -> ChatWork:
        return self.job.work

    @property
    def is_fully_launched(self) -> bool:
        """True if `max_tokens` tokens of the answer were launched."""
        return self.num_launched >= self.job.work.max_tokens

    def describe(self) -> dict[str, object]:
        """Its progress in tokens, and its pages, for operators. Any thread."""
        most, made = self.work.max_tokens, len(self.answer)
        prompt = {
            "prompt_tokens": self.num_prompt_tokens,
            "prompt_done": min(self.num_prefilled, self.num_prompt_tokens),
        }
        pages = {"kv_pages": len(self.pages), "tokens_lost": self.num_lost}
        steps = {"steps_done": made, "steps_left": most - made}
        return {**steps, **prompt, **pages, "is_constrained": self.constraint is not None}

    # -- pages -----------------------------------------------------------------------------------
    def set_pages(self, pages: tuple[int, ...], page_tokens: int) -> None:
        """Give it these pages. The newest token of an answer is not in the cache yet, and needs no
        place."""
        self.pages = pages
        self.answer_room = min(
            self.work.max_tokens, len(pages) * page_tokens - self.num_prompt_tokens + 1
        )

    def lose_pages(self) -> int:
        """Take its pages away; returns the number of tokens in them. It keeps its slot, and the
        slot's state on the device."""
        in_cache = self.num_prefilled
        if self.num_launched and in_cache == self.to_prefill:
            in_cache = self.num_prompt_tokens + self.num_launched - 1
        self.num_lost += in_cache
        self.pages = ()
        self.answer_room = self.to_prefill = self.num_prefilled = self.num_shared = 0
        self.is_begun = False
        return in_cache

    def restart_prefill(self) -> None:
        """Have it read its prompt and its answer again, but for the newest token, which the slot
        holds. All its launched tokens must have reached the host."""
        work, answer = self.work, self.answer[:-1]
        self.to_prefill = self.num_prompt_tokens + len(answer)
        self.prefill_again = None
        if answer:
            tokens = torch.tensor(answer, dtype=torch.int64)
            positions = torch.arange(len(answer)) + work.next_position
            self.prefill_again = (
                torch.cat((work.tokens, tokens)),
                torch.cat((work.positions, positions.expand(3, -1)), dim=1),
            )

    def prefill_part(self, part: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens (n,) and rotary positions (3, n) of a part of `to_prefill`."""
        tokens, positions = self.prefill_again or (self.job.work.tokens, self.job.work.positions)
        return tokens.numpy()[part], positions.numpy()[:, part]

    def next_choice(self) -> TokenChoice:
        """How its next token is chosen."""
        work = self.job.work
        return TokenChoice(self.slot, work.sampling, work.seed, self.num_launched, work.controls)


class ChatMetrics:
    """The series of one model, bound once: they are updated per token. Engine thread only."""

    def __init__(self, model: str) -> None:
        self.observe_rows = metrics.batch_size.labels(model).observe
        self.observe_prefill = metrics.prefill_size.labels(model).observe
        self.set_usage = metrics.kv_cache_usage_ratio.labels(model).set
        self._add_tokens = metrics.generation_tokens_total.labels(model).inc
        self._preemptions = metrics.preemptions_total.labels(model).inc
        self._preempted_tokens = metrics.preempted_tokens_total.labels(model).inc
        self.count_late_mask = metrics.late_masks_total.labels(model).inc
        self._model = model
        self._between = metrics.itl_seconds.labels(model).observe_many
        self._first = metrics.ttft_seconds.labels(model).observe
        self._prompt_tokens = metrics.prompt_tokens_total.labels(model).inc
        self._vision_tokens = metrics.vision_tokens_total.labels(model).inc
        self._prompt = metrics.request_prompt_tokens.labels(model).observe
        self._answer = metrics.request_generation_tokens.labels(model).observe
        stages = ("vision_encode", "prefill", "decode")
        self._stages = {s: metrics.stage_seconds.labels(model, s).observe for s in stages}

    def observe_tokens(self, earlier: Mapping[float, int], now: float) -> None:
        """Observe the tokens that came at `now`. `earlier`: times of the tokens before them, and
        how many came after each."""
        for before, count in earlier.items():
            self._between(now - before, count)
        self._add_tokens(sum(earlier.values()))

    def observe_first(self, sequence: Sequence, now: float) -> None:
        """Observe a sequence's first token, which came at `now` in seconds of its job's clock."""
        job, work = sequence.job, sequence.work
        sequence.first_token_at = now
        self._add_tokens(1)
        self._first(now - job.submitted_at, job.exemplar)
        self.observe_stage(job, "prefill", now - (job.admitted_at or job.submitted_at))
        self._prompt_tokens(work.num_prompt_tokens)
        self._vision_tokens(sum(picture.length for picture in work.pictures))
        self._prompt(work.num_prompt_tokens)

    def observe_preemption(self, num_tokens: int) -> None:
        """Count a sequence that gave back pages with so many tokens."""
        self._preemptions()
        self._preempted_tokens(num_tokens)

    def observe_end(self, sequence: Sequence) -> None:
        seconds = sequence.last_token_at - sequence.first_token_at
        self.observe_stage(sequence.job, "decode", seconds)
        self._answer(len(sequence.answer))

    def observe_stage(self, job: ChatJob, stage: str, seconds: float) -> None:
        """Record a stage of `job`. On a GPU `vision_encode` is the time of the launch alone."""
        job.add_stage(stage, seconds)
        self._stages[stage](seconds, job.exemplar)

    def cache_counter(self, name: str) -> Callable[[str], None]:
        """A function that counts a `hit`, `miss` or `evict` of the cache of that name."""
        counters = {
            result: metrics.cache_requests_total.labels(self._model, name, result)
            for result in metrics.CACHE_RESULTS
        }
        return lambda result: counters[result].inc()
