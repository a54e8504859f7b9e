"""What an engine of this room tells the metrics, bound once per model: a token must cost as little
as possible. Knows sequences and pages by their numbers; decides nothing. Engine thread only.
"""

from __future__ import annotations

from collections.abc import Callable

from predictors import metrics
from predictors.chat.sequence import ChatJob, Reply

SERIES = metrics.ModelSeries(
    operations=("infer", "chat"),
    stages=("prepare", "vision_encode", "prefill", "decode", "detokenize"),
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
    },
)


class Observations:
    """The series of one model."""

    def __init__(self, model: str) -> None:
        self.rows = metrics.batch_size.labels(model).observe
        self.usage = metrics.kv_cache_usage_ratio.labels(model).set
        self._model = model
        self._tokens = metrics.generation_tokens_total.labels(model).inc
        self._between = metrics.itl_seconds.labels(model).observe
        self._first = metrics.ttft_seconds.labels(model).observe
        self._prompt_tokens = metrics.prompt_tokens_total.labels(model).inc
        self._vision_tokens = metrics.vision_tokens_total.labels(model).inc
        self._prompt = metrics.request_prompt_tokens.labels(model).observe
        self._answer = metrics.request_generation_tokens.labels(model).observe
        stages = ("vision_encode", "prefill", "decode")
        self._stages = {s: metrics.stage_seconds.labels(model, s).observe for s in stages}

    def tokens(self, count: int) -> None:
        """So many tokens of answers were read."""
        self._tokens(count)

    def token(self, reply: Reply, now: float) -> None:
        """`reply` has one more token at `now`, seconds of its job's clock."""
        if len(reply.answer) == 1:
            self._begin(reply, now)
        else:
            self._between(now - reply.last_token_at)
        reply.last_token_at = now

    def _begin(self, reply: Reply, now: float) -> None:
        job, work = reply.job, reply.work
        reply.first_token_at = now
        self._first(now - job.submitted_at, job.exemplar)
        self.stage(job, "prefill", now - (job.admitted_at or job.submitted_at))
        self._prompt_tokens(work.num_prompt_tokens)
        self._vision_tokens(sum(picture.length for picture in work.pictures))
        self._prompt(work.num_prompt_tokens)

    def end(self, reply: Reply) -> None:
        """The answer of `reply` is whole."""
        self.stage(reply.job, "decode", reply.last_token_at - reply.first_token_at)
        self._answer(len(reply.answer))

    def stage(self, job: ChatJob, stage: str, seconds: float) -> None:
        """A stage of `job` took so long; on a GPU `vision_encode` is its launch alone."""
        job.add_stage(stage, seconds)
        self._stages[stage](seconds, job.exemplar)

    def cache(self, name: str) -> Callable[[str], None]:
        """What counts `hit`, `miss` and `evict` of the cache of that name."""
        counters = {
            result: metrics.cache_requests_total.labels(self._model, name, result)
            for result in metrics.CACHE_RESULTS
        }
        return lambda result: counters[result].inc()
