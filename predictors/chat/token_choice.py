"""How the next tokens are chosen, for all rows of a pass at once: from what callers asked to
tensors and the function that takes them. Knows no caller and no forward pass. Engine thread only.

Most callers want the most likely token or a draw over everything; only top_k and top_p need the
vocabulary sorted, which costs as much as a decode step of one sequence. So there are three ways; a
pass takes the cheapest that serves all its rows, and a row's token is the same in each that can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from predictors.chat.device_state import Slots
from predictors.chat.request import Sampling
from predictors.chat.sampling import Draw, Penalties, checked, drawn, greedy, noise_key, sampled

NEUTRAL = (1.0, 0.0, 0.0, 1.0, 1.0)

Pick = Callable[[Tensor, Penalties, Draw], Tensor]


def _most_likely(logits: Tensor, penalties: Penalties, draw: Draw) -> Tensor:
    return greedy(logits, penalties)


WAYS: Mapping[str, Pick] = {"greedy": _most_likely, "drawn": drawn, "sampled": sampled}
"""From the cheapest to the one that serves everybody."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How the next token of the sequence in `slot` is chosen; `position` is its number in the
    answer."""

    slot: int
    sampling: Sampling
    seed: int
    position: int


def way_for(choices: Sequence[Choice]) -> str:
    """The cheapest of WAYS that serves all."""
    if all(c.sampling.is_greedy for c in choices):
        return "greedy"
    is_open = (c.sampling.top_k <= 0 and c.sampling.top_p >= 1.0 for c in choices)
    return "drawn" if all(is_open) else "sampled"


def packed(choices: Sequence[Choice], width: int, vocab: int, nobody: int) -> tuple[Tensor, Tensor]:
    """ints (5, width) int64: slot, number, top_k, key, greedy; floats (5, width) fp32: penalties
    (repetition, presence, frequency), temperature, top_p. On the host."""
    missing = width - len(choices)
    ints = [_ints(choice, vocab) for choice in choices] + [(nobody, 0, vocab, 0, 1)] * missing
    floats = [_floats(choice.sampling) for choice in choices] + [NEUTRAL] * missing
    return torch.tensor(ints).T.contiguous(), torch.tensor(floats).T.contiguous()


def choose(pick: Pick, state: Slots, logits: Tensor, ints: Tensor, floats: Tensor) -> Tensor:
    """The next token (rows,) int64 for `logits` (rows, vocab) fp32, or `NOT_FINITE`; remembered in
    `state`."""
    slots, numbers, top_k, key, is_greedy = ints.unbind()
    temperature, top_p = floats[3:, :, None].unbind()
    greedy_rows = is_greedy.bool()[:, None]
    draw = Draw(temperature, top_p, top_k[:, None], key[:, None], greedy_rows, state.vocabulary)
    tokens = pick(logits, state.penalties(slots, floats[:3]), draw)
    # a real token in any case: a step may be launched before this is read
    state.keep(slots, numbers, tokens)
    return checked(tokens, logits)


def _ints(choice: Choice, vocab: int) -> tuple[int, int, int, int, int]:
    sampling = choice.sampling
    top_k = min(sampling.top_k, vocab) if sampling.top_k > 0 else vocab
    is_greedy = sampling.is_greedy
    key = 0 if is_greedy else noise_key(choice.seed, choice.position)
    return choice.slot, choice.position, top_k, key, int(is_greedy)


def _floats(sampling: Sampling) -> tuple[float, float, float, float, float]:
    return (
        sampling.repetition_penalty,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        1.0 if sampling.is_greedy else sampling.temperature,
        sampling.top_p,
    )
