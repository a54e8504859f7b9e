"""Every body that the OpenAI routes accept is understood by the codecs of the tasks.

The routes check what all models share and a codec what its own checkpoint needs: each body becomes
requests or a refusal.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.chat.codec import ChatCodec
from predictors.chat.pixel_bounds import PixelLimits
from predictors.chat.request import Sampling
from predictors.diffusion.codec import ImageCodec
from predictors.diffusion.files import PictureWriter
from predictors.diffusion.limits import PictureLimits
from predictors.diffusion.request import Tiers
from predictors.errors import InvalidRequest
from predictors.protocol.openai.chat_body import read_chat_body
from predictors.protocol.openai.images_body import read_images_body

LIMITS = PictureLimits(
    default_width=128,
    default_height=128,
    default_steps=4,
    default_guidance=3.5,
    default_sequence_length=64,
    max_sequence_length=64,
    side_multiple=16,
    min_side=64,
    max_side=256,
    max_pixels=256 * 192,
    max_steps=10,
    sizes=((128, 128),),
    refuses_unpromised=False,
    tiers=Tiers(("lossless", "turbo"), "lossless"),
)
FLUX = ImageCodec(model="flux", limits=LIMITS, precision="float32", writer=PictureWriter("flux", 1))
QWEN_VL = ChatCodec(Sampling(), "float32", 2, PixelLimits(3136, 10**6, 10**6, 784))

TEXT = st.text(max_size=12)
SEED = st.integers(0, 2**53)
SIDE = st.sampled_from([64, 128, 192, 256, 128.0, 63, 272, 10**9])
SCALE = st.floats(0, 101)
IMAGE_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "negative_prompt": TEXT,
    "n": st.integers(1, 16),
    "size": st.sampled_from(["auto", "64x64", "256x192", "256x256", "63x64", "999999x1", "1x1"]),
    "width": SIDE,
    "height": SIDE,
    "seed": SEED,
    "num_inference_steps": st.integers(0, 11),
    "guidance_scale": SCALE,
    "true_cfg_scale": SCALE,
    "max_sequence_length": st.integers(0, 65),
    "output_format": st.sampled_from(["png", "jpeg", "webp"]),
    "output_compression": st.integers(0, 100),
    "tier": st.sampled_from(["lossless", "turbo", "high", "x"]),
    "quality": st.sampled_from(["auto", "standard", "lossless", "high", "turbo", "hd"]),
}
URL = st.sampled_from(
    [
        "data:image/png;base64,AAAA",
        "data:image/png;base64,@@",
        "data:,x",
        "data:",
        "",
        "http://127.0.0.1/a.png",
        "http://allowed\\@evil",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:image/png;base64," * 50,
        "data:image/png;base64,AA\nAA",
        "data:image/png;base64,\u00e9",
    ]
)
PART = st.builds(lambda t: {"type": "text", "text": t}, TEXT) | st.builds(
    lambda url: {"type": "image_url", "image_url": {"url": url}}, URL | TEXT
)
TURN = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant", "system", "developer"]),
    TEXT | st.lists(PART, min_size=1, max_size=4),
)
CHAT_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(1, 2**31 - 1),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(-1, 100),
    "repetition_penalty": st.floats(0, 100),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "seed": SEED,
    "stop": TEXT | st.lists(TEXT, max_size=17),
    "n": st.integers(1, 16),
    "ignore_eos": st.booleans(),
}


@settings(max_examples=150)
@given(st.fixed_dictionaries({"prompt": TEXT}, optional=IMAGE_FIELDS))
def test_every_images_body_becomes_requests_or_a_refusal(fields: dict[str, Any]) -> None:
    try:
        body = read_images_body({"model": "flux"} | fields)
        requests = FLUX.decode_images(body)
    except InvalidRequest:
        return
    assert len(requests) == fields.get("n", 1)
    for i, request in enumerate(requests):
        assert request.prompt == fields["prompt"]
        assert 0 <= request.seed < 2**53
        if "seed" in fields:
            assert request.seed == fields["seed"] + i
        if "num_inference_steps" in fields:
            assert request.num_inference_steps == fields["num_inference_steps"]


@settings(max_examples=150)
@given(
    st.fixed_dictionaries(
        {"messages": st.lists(TURN, min_size=1, max_size=3)}, optional=CHAT_FIELDS
    )
)
def test_every_chat_body_becomes_requests_or_a_refusal(fields: dict[str, Any]) -> None:
    try:
        body = read_chat_body({"model": "qwen-vl"} | fields)
        requests = QWEN_VL.decode_chat(body)
    except InvalidRequest:
        return
    assert len(requests) == fields.get("n", 1)
    for request in requests:
        assert len(request.messages) == len(fields["messages"])
        assert 0 <= request.seed < 2**53
        assert request.max_tokens == fields.get("max_tokens")
        for name in ("temperature", "top_p", "repetition_penalty", "presence_penalty"):
            if name in fields:
                assert getattr(request.sampling, name) == fields[name]


def test_both_spellings_of_a_parameter_make_the_same_request() -> None:
    common = {"model": "flux", "prompt": "x", "seed": 3}
    by_size = read_images_body(common | {"size": "64x128"})
    by_sides = read_images_body(common | {"width": 64, "height": 128})
    assert FLUX.decode_images(by_size) == FLUX.decode_images(by_sides)
    messages = [{"role": "user", "content": "x"}]
    chat = {"model": "qwen-vl", "messages": messages, "seed": 3}
    older = read_chat_body(chat | {"max_tokens": 5, "stop": "a"})
    newer = read_chat_body(chat | {"max_completion_tokens": 5, "stop": ["a"]})
    assert QWEN_VL.decode_chat(older) == QWEN_VL.decode_chat(newer)
