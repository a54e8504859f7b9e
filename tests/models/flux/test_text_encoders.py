"""The short way through CLIP and T5 gives what the library's own forward gives, to the bit on the
CPU, with either kind of end token and without waiting for the device."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from predictors.models.flux.modules.text_encoders import clip_pooled, t5_states
from tests.tools.syncs import count_host_syncs

END = 49
NUM_TOKENS = 12


def clip_model(end: int) -> CLIPTextModel:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=NUM_TOKENS,
        eos_token_id=end,
        bos_token_id=48,
        pad_token_id=1,
    )
    return CLIPTextModel(config).eval()


def t5_model() -> T5EncoderModel:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=50,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=3,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def some_ids() -> torch.Tensor:
    """Two prompts of five and seven tokens with their end token, padded with it."""
    ids = torch.randint(3, 40, (2, NUM_TOKENS), generator=torch.Generator().manual_seed(1))
    ids[0, 5:] = END
    ids[1, 7:] = END
    return ids


@pytest.mark.parametrize("end", [END, 2])
@torch.inference_mode()
def test_clip_pools_at_the_first_end_token_as_the_library_does(end: int) -> None:
    model, ids = clip_model(end), some_ids()
    pooled = clip_pooled(model, ids)
    assert torch.equal(pooled, model(ids).pooler_output)
    longer = ids.clone()
    longer[:, 8:] = 5  # nothing after the end token counts
    assert torch.allclose(pooled, clip_pooled(model, longer), atol=1e-6)


@torch.inference_mode()
def test_t5_gives_the_librarys_states_to_the_bit() -> None:
    model, ids = t5_model(), some_ids()
    assert torch.equal(t5_states(model, ids), model(ids)[0])


@torch.inference_mode()
def test_neither_encoder_waits_for_the_device() -> None:
    clip, t5, ids = clip_model(END), t5_model(), some_ids()
    with count_host_syncs() as found:
        clip_pooled(clip, ids)
        t5_states(t5, ids)
    assert found.syncs == 0, found


@pytest.mark.gpu
@torch.inference_mode()
def test_a_captured_encoder_gives_the_bits_of_an_eager_one() -> None:
    from predictors.compute.device.graphs import Graphs
    from predictors.compute.device.placement import Placement

    placement = Placement(torch.device("cuda"), torch.bfloat16, "inductor")
    graphs = Graphs("text", placement)
    clip, t5 = clip_model(END).to("cuda", torch.bfloat16), t5_model().to("cuda", torch.bfloat16)

    def encode(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return clip_pooled(clip, ids), t5_states(t5, ids)

    captured = graphs.capture(encode, (torch.zeros_like(some_ids()).cuda(),))
    ids = some_ids().cuda()
    found = [x.clone() for x in captured(ids)]
    for ours, theirs in zip(found, encode(ids), strict=True):
        assert torch.equal(ours, theirs)
    graphs.close()
