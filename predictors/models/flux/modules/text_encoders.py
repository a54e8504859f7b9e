"""What FLUX takes from CLIP and T5, computed through the library's own layers. Knows no token, no
prompt and no mask: every prompt is padded to one length, and the pads are read like words.

The library's `forward` builds its masks differently while a CUDA graph is captured (it takes that
for tracing), so a rehearsal would warm other kernels than the graph holds. These functions go
through the same layers without a mask and are captured as they run.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

OLD_END_TOKEN = 2  # of configs before transformers' PR 24773: the last token is the largest id


def clip_pooled(clip: CLIPTextModel, ids: Tensor) -> Tensor:
    """ids int64 (rows, tokens) to the state at the first end token, (rows, dim). No host sync.

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
    """ids int64 (rows, tokens) to the last states (rows, tokens, dim). No host sync.

    Equal to `t5(ids)[0]` up to the attention kernel: on a GPU the position bias is laid out so that
    the fused kernels take it.
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
