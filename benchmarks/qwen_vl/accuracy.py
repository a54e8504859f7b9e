"""Distances of logits on the full-size random model: our engine beside transformers in the same
precision and in float32.

Our engine answers greedily; transformers then gets prompt and answer and gives its logits at each
place. Two bfloat16 programs never agree bit by bit: the one nearer to float32 rounds less. `regret`
is how far the float32 logit of the chosen token is below the largest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.distances import distance
from benchmarks.common.run import PartialResults
from benchmarks.qwen_vl.cases import Pictures, text
from benchmarks.qwen_vl.options import QwenVLOptions
from benchmarks.qwen_vl.ours import Ours
from benchmarks.qwen_vl.peer import Peer

TOKENS, TOY_TOKENS = 24, 6
KINDS = ((), ((448, 448),), ((1024, 1024),), ((448, 448), (448, 448)))
TOY_KINDS = ((), ((64, 64),), ((64, 48), (64, 64)))
POOL = {"QWEN_VL_KV_TOKENS": "32768", "QWEN_VL_MAX_CONTEXT": "8192", "QWEN_VL_SLOTS": "4"}
TOY_POOL = {"QWEN_VL_SLOTS": "4"}
SLACK = 1.25  # one draw of rounding is not the last word on a spread
LEAST = 1e-5  # float32 sums in another order; nothing beside bfloat16's spread
SMALL_REGRET = 0.02  # of logits whose spread is about 1


@dataclass(frozen=True, slots=True)
class Prompt:
    name: str
    files: list[bytes] = field(repr=False)
    words: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Ours: `tokens`, and `logits` (n, vocab) float32 on the CPU, each row before a token; None if
    they cannot be seen."""

    prompt: list[int] = field(repr=False)
    tokens: list[int]
    logits: Tensor | None = field(repr=False)


def accuracy(options: QwenVLOptions, results: PartialResults) -> None:
    """Our answers, then the peer's logits in our precision and in float32; a figure per prompt."""
    prompts = list(make_prompts(options))
    one = Ours(options, **(TOY_POOL if options.is_toy else POOL))
    tokens = TOY_TOKENS if options.is_toy else TOKENS
    answers = [answer(one, prompt, tokens) for prompt in prompts]
    one.engine.close()
    device = torch.device(options.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    peer = Peer(Path(options.folder), device, dtype)
    same = [forced(peer, *pair) for pair in zip(prompts, answers, strict=True)]
    peer.model.float()
    for prompt, ours, theirs in zip(prompts, answers, same, strict=True):

        def compared(prompt: Prompt = prompt, ours: Answer = ours, theirs: Any = theirs) -> Any:
            return compare(ours, theirs, forced(peer, prompt, ours))

        results.attempt(prompt.name, compared)
    results.add("as near as the peer", verdict(results.found))


def make_prompts(options: QwenVLOptions) -> Iterator[Prompt]:
    """Text, a picture, a large one, two."""
    for number, sizes in enumerate(TOY_KINDS if options.is_toy else KINDS):
        files = [Pictures(*size).jpeg(40 + number + i) for i, size in enumerate(sizes)]
        name = " and ".join(f"{width}x{height}" for width, height in sizes) or "text"
        yield Prompt(name, files, text(70 + number))


def answer(one: Ours, prompt: Prompt, tokens: int) -> Answer:
    """Greedy, with no other sequence."""
    work = one.prepare(*prompt.files, prompt.words, tokens=tokens)
    with watched(one) as seen:
        (job,) = one.answers([work])
    logits = torch.cat(seen).float().cpu()[: len(job.tokens)] if seen else None
    complete = logits is not None and len(logits) == len(job.tokens)
    return Answer(work.tokens.tolist(), job.tokens, logits if complete else None)


@contextmanager
def watched(one: Ours) -> Iterator[list[Tensor]]:
    """Inside, collects the logits (1, vocab) from which a lone job's tokens are chosen, in order;
    empty if the runner has no `chooser`."""
    chooser: Any = getattr(one.engine._launcher.runner, "chooser", None)
    seen: list[Tensor] = []
    if chooser is None:
        yield seen
        return
    choose: Callable[..., Tensor] = chooser.choose

    def watching(logits: Tensor, choices: Sequence[Any]) -> Tensor:
        if choices:  # none: a prompt that goes on in the next pass
            seen.append(logits[:1].detach().clone())
        return choose(logits, choices)

    chooser.choose = watching
    try:
        yield seen
    finally:
        del chooser.choose


def forced(peer: Peer, prompt: Prompt, ours: Answer) -> Tensor:
    """The peer's logits (n, vocab) float32 on the CPU before each token of our answer."""
    inputs = peer.inputs([prompt.files], [prompt.words])
    if inputs["input_ids"][0].tolist() != ours.prompt:
        raise RuntimeError("the prompts differ")
    more = torch.tensor([ours.tokens[:-1]], device=peer.clock.device)
    for name, value in (("input_ids", more), ("attention_mask", torch.ones_like(more))):
        inputs[name] = torch.cat((inputs[name], value), 1)
    kinds = inputs.get("mm_token_type_ids")
    if kinds is not None:
        inputs["mm_token_type_ids"] = torch.cat((kinds, torch.zeros_like(more)), 1)
    with torch.inference_mode():
        logits = peer.model(**inputs, logits_to_keep=len(ours.tokens), use_cache=False).logits
    return logits[0].float().cpu()


def compare(ours: Answer, same: Tensor, exact: Tensor) -> dict[str, Any]:
    """Distances and choices; `same` is the peer in our precision, `exact` in float32."""
    chosen = torch.tensor(ours.tokens)
    found: dict[str, Any] = {
        "prompt_tokens": len(ours.prompt),
        "tokens": len(ours.tokens),
        "peer to float32": distance(same, exact),
        "ours as float32": agreement(chosen, exact),
        "peer as float32": agreement(same.argmax(1), exact),
        "ours regret": regret(chosen, exact),
        "peer regret": regret(same.argmax(1), exact),
        "spread of logits": float(exact.std()),
        "finite": bool(torch.isfinite(same).all()),
    }
    if ours.logits is None:
        return found
    return found | {
        "ours to float32": distance(ours.logits, exact),
        "ours to peer": distance(ours.logits, same),
        "first, ours to float32": distance(ours.logits[:1], exact[:1]),
        "first, peer to float32": distance(same[:1], exact[:1]),
        "finite": found["finite"] and bool(torch.isfinite(ours.logits).all()),
    }


def agreement(tokens: Tensor, exact: Tensor) -> float:
    """Share of the tokens that float32 would have chosen."""
    return float((tokens == exact.argmax(1)).float().mean())


def regret(tokens: Tensor, exact: Tensor) -> float:
    """Mean of how far the chosen logit is below the largest."""
    best = exact.max(1).values
    return float((best - exact.gather(1, tokens[:, None])[:, 0]).mean())


def verdict(found: dict[str, Any], slack: float = SLACK) -> dict[str, bool]:
    """By prompt: whether ours is as near to float32 as the peer, one draw of rounding allowed."""
    rows = {name: row for name, row in found.items() if isinstance(row, dict)}
    return {
        name: row.get("ours to float32", 0.0) <= slack * row["peer to float32"] + LEAST
        and row["ours regret"] <= max(slack * row["peer regret"], SMALL_REGRET)
        for name, row in rows.items()
    }
