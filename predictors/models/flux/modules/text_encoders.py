"""CLIP's pooled state and T5's last states, computed through transformers' own layers.

There is no mask: every prompt is padded to one length, and padding is read like words. The
library's `forward` builds its masks differently while a CUDA graph is captured, which it takes for
tracing, so the run before a capture would use other kernels than the graph. These functions run
the same layers without a mask, captured or not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from predictors.models.flux.tokens import OLD_END_TOKEN


def clip_pooled(clip: CLIPTextModel, ids: Tensor) -> Tensor:
    """The state at the first end token, (rows, dim), for ids int64 (rows, tokens). No host sync.

    Equal to `clip(ids).pooler_output`.
    """
    states = clip.encoder(
        inputs_embeds=clip.embeddings(input_ids=ids), attention_mask=None, is_causal=True
    ).last_hidden_state
    states = clip.final_layer_norm(states)
    end = clip.eos_token_id
    assert isinstance(end, int)  # a list is for models that generate
    marks = ids if end == OLD_END_TOKEN else ids.eq(end).int()
    rows = torch.arange(ids.shape[0], device=ids.device)
    pooled: Tensor = states[rows, marks.argmax(dim=-1)]
    return pooled


def t5_states(t5: T5EncoderModel, ids: Tensor) -> Tensor:
    """The last states (rows, tokens, dim), for ids int64 (rows, tokens). No host sync.

    Equal to `t5(ids)[0]` up to the attention kernel: on a GPU the position bias is made contiguous,
    so that fused kernels accept it.
    """
    stack = t5.encoder
    states: Tensor = stack.embed_tokens(ids)
    bias = None
    for block in stack.block:
        states, bias, *_ = block(states, None, bias)
        if bias.is_cuda:
            bias = bias.contiguous()  # (1, heads, tokens, tokens); from the second block on a no-op
    normed: Tensor = stack.final_layer_norm(states)
    return normed
