"""Logprobs of chosen tokens: of the raw logits, before penalties, bias, grammar and temperature.

They are a launch of their own, in passes where a row asks for them, and reach the host with the
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from predictors.chat.request import TokenLogprob
from predictors.compute.device.placement import HostCopy

MOST_LOGPROBS = 20
"""Most alternatives beside the chosen token, as for OpenAI."""


def score_tokens(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """ints (rows, 1 + n) int64: the rank of the chosen `tokens` (rows,), then the n likeliest
    tokens; floats (rows, 1 + n) fp32: the logprobs of all these. `logits` (rows, vocab) fp32.

    n is `MOST_LOGPROBS`, or the vocabulary's size. Of equals the lower token stands first, as it
    is chosen first; the rank is 1 + the tokens that are likelier.
    """
    logprobs = logits.log_softmax(-1)
    chosen = tokens.clamp(min=0)[:, None]  # a row that is not finite has no token
    rank = (logits > logits.gather(1, chosen)).sum(-1, keepdim=True) + 1
    likeliest = logits.topk(min(MOST_LOGPROBS, logits.shape[-1])).indices.sort(-1).values
    order = logits.gather(1, likeliest).sort(stable=True, dim=-1, descending=True).indices
    likeliest = likeliest.gather(1, order)
    values = logprobs.gather(1, torch.cat((chosen, likeliest), 1))
    return torch.cat((rank, likeliest), 1), values


@dataclass(frozen=True, slots=True)
class RowScores:
    """Row `row` of what `score_tokens` gave for a pass, on its way to the host."""

    ints: HostCopy
    floats: HostCopy
    row: int

    def read(self, token: int, num_top: int) -> TokenLogprob:
        """For the chosen `token`, with so many alternatives. Waits for the copies, which arrive
        before the tokens of their step."""
        rank, *tokens = self.ints.result()[self.row].tolist()
        logprob, *values = self.floats.result()[self.row].tolist()
        top = tuple(zip(tokens[:num_top], values, strict=False))
        return TokenLogprob(token, logprob, rank, top)
