"""CLIP and T5 give what transformers' classes give with the same weights, to the bit on the CPU,
with every kind of end token and activation, and without waiting for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from transformers.activations import ACT2FN

from predictors.errors import EngineFailed
from predictors.models.flux.encoders import ACTIVATIONS, clip_shape, t5_shape
from predictors.models.flux.modules.text_encoders import (
    ACTIVATION_FUNCTIONS,
    ClipTextEncoder,
    T5TextEncoder,
    relative_buckets,
)
from predictors.models.flux.tensors import with_defaults
from tests.tools.syncs import count_host_syncs

END = 49
NUM_TOKENS = 12
CLIP_SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": NUM_TOKENS,
    "bos_token_id": 48,
    "pad_token_id": 1,
}
T5_SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 3,
    "num_heads": 2,
}
GATED = {"feed_forward_proj": "gated-gelu"}


def clip_pair(**changes: Any) -> tuple[ClipTextEncoder, CLIPTextModel]:
    """Ours and the library's with the same random weights."""
    torch.manual_seed(0)
    values = {**CLIP_SIZES, "eos_token_id": END, **changes}
    theirs = CLIPTextModel(CLIPTextConfig(**values)).eval()
    ours = ClipTextEncoder(clip_shape(with_defaults("text_encoder", values))).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def t5_pair(**changes: Any) -> tuple[T5TextEncoder, T5EncoderModel]:
    torch.manual_seed(0)
    values = {**T5_SIZES, **changes}
    theirs = T5EncoderModel(T5Config(**values)).eval()
    ours = T5TextEncoder(t5_shape(with_defaults("text_encoder_2", values))).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def t5_model() -> T5TextEncoder:
    return t5_pair(**GATED)[0]


def some_ids() -> torch.Tensor:
    """Two prompts of five and seven tokens with their end token, padded with it."""
    ids = torch.randint(3, 40, (2, NUM_TOKENS), generator=torch.Generator().manual_seed(1))
    ids[0, 5:] = END
    ids[1, 7:] = END
    return ids


@pytest.mark.parametrize("end", [END, 2])
@torch.inference_mode()
def test_clip_pools_at_the_first_end_token_as_the_library_does(end: int) -> None:
    (ours, theirs), ids = clip_pair(eos_token_id=end), some_ids()
    pooled = ours(ids)
    assert torch.equal(pooled, theirs(ids).pooler_output)
    longer = ids.clone()
    longer[:, 8:] = 5  # nothing after the end token counts
    assert torch.allclose(pooled, ours(longer), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("proj", ["gated-gelu", "relu", "gated-silu", "gelu_new"])
@torch.inference_mode()
def test_t5_gives_the_librarys_states_to_the_bit(proj: str, dtype: torch.dtype) -> None:
    (ours, theirs), ids = t5_pair(feed_forward_proj=proj), some_ids()
    assert torch.equal(ours.to(dtype)(ids), theirs.to(dtype)(ids)[0])


@pytest.mark.parametrize("act", [None, "relu"])
@torch.inference_mode()
def test_a_named_activation_of_t5_counts_as_in_the_library(act: str | None) -> None:
    named = {} if act is None else {"dense_act_fn": act, "is_gated_act": True}
    (ours, theirs), ids = t5_pair(**GATED, **named), some_ids()
    assert torch.equal(ours(ids), theirs(ids)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_the_librarys_to_the_bit(name: str, dtype: torch.dtype) -> None:
    x = torch.linspace(-9, 9, 1001, dtype=dtype)
    assert set(ACTIVATION_FUNCTIONS) == set(ACTIVATIONS)
    assert torch.equal(ACTIVATION_FUNCTIONS[name](x), ACT2FN[name](x))


@pytest.mark.parametrize(("count", "most"), [(32, 128), (32, 20), (8, 16), (4, 2)])
def test_distances_fall_into_the_librarys_buckets(count: int, most: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-600, 600)
    theirs = T5Attention._relative_position_bucket(distances, True, count, most)
    assert torch.equal(relative_buckets(distances, count, most), theirs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "prelu"}, "hidden_act is 'prelu'; served are gelu"),
        ({"num_attention_heads": 3}, "hidden_size 16 is not a multiple of 3 heads"),
        ({"eos_token_id": [1, 2]}, "not the id of one token"),
        ({"layer_norm_eps": None}, "layer_norm_eps is None, not a number above 0"),
    ],
)
def test_numbers_of_clip_that_are_not_served_are_named(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineFailed, match=message):
        clip_shape(with_defaults("text_encoder", CLIP_SIZES | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feed_forward_proj": "gelu-gated"}, "feed_forward_proj is 'gelu-gated'"),
        ({"feed_forward_proj": "relu", "is_gated_act": True}, "is_gated_act is True"),
        ({**GATED, "dense_act_fn": "no"}, "dense_act_fn is 'no'; served are"),
        ({"layer_norm_epsilon": "1"}, "layer_norm_epsilon is '1'"),
        ({"relative_attention_num_buckets": 3}, "must be even"),
        ({"relative_attention_max_distance": 8}, "must be above a quarter"),
    ],
)
def test_numbers_of_t5_that_are_not_served_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineFailed, match=message):
        t5_shape(with_defaults("text_encoder_2", T5_SIZES | values))


@torch.inference_mode()
def test_neither_encoder_waits_for_the_device() -> None:
    (clip, _), t5, ids = clip_pair(), t5_model(), some_ids()
    with count_host_syncs() as found:
        clip(ids)
        t5(ids)
    assert found.syncs == 0, found


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_states_on_a_card_are_those_of_the_librarys_layers_to_the_bit(dtype: torch.dtype) -> None:
    (ours, theirs), ids = (each.to("cuda", dtype) for each in clip_pair()), some_ids().cuda()
    assert torch.equal(ours(ids), theirs(ids).pooler_output)
    ours, theirs = (each.to("cuda", dtype) for each in t5_pair(**GATED))
    stack = theirs.encoder  # its own forward leaves the bias as it is
    states, bias = stack.embed_tokens(ids), None
    for block in stack.block:
        states, bias, *_ = block(states, None, bias)
        bias = bias.contiguous()
    assert torch.equal(ours(ids), stack.final_layer_norm(states))


@pytest.mark.gpu
@torch.inference_mode()
def test_a_captured_encoder_gives_the_bits_of_an_eager_one() -> None:
    from predictors.compute.device.graphs import Graphs
    from predictors.compute.device.placement import Placement

    placement = Placement(torch.device("cuda"), torch.bfloat16, "inductor")
    graphs = Graphs("text", placement)
    clip, t5 = (each.to("cuda", torch.bfloat16) for each in (clip_pair()[0], t5_model()))

    def encode(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return clip(ids), t5(ids)

    captured = graphs.capture(encode, (torch.zeros_like(some_ids()).cuda(),))
    ids = some_ids().cuda()
    found = [x.clone() for x in captured(ids)]
    for ours, theirs in zip(found, encode(ids), strict=True):
        assert torch.equal(ours, theirs)
    graphs.close()
