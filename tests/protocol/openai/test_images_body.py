"""The fields of an images body: what is read, what is dropped, and what is refused by name."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.errors import InvalidRequest
from predictors.protocol.openai.images_body import (
    FIELDS,
    OTHER_NAMES,
    OWN_FIELDS,
    QUALITIES,
    ImagesBody,
    read_images_body,
)
from tests.protocol.openai.doubles import IMAGES, Painter, application, post


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "flux", "prompt": "a red circle"} | fields


def checked(**fields: Any) -> ImagesBody:
    return ImagesBody("flux", "a red circle", **fields)


def test_a_full_body_is_read_with_its_size_as_width_and_height() -> None:
    extras = {
        "negative_prompt": "blue",
        "n": 2,
        "seed": 0,
        "num_inference_steps": 28,
        "guidance_scale": 3.5,
        "true_cfg_scale": 4.0,
        "max_sequence_length": 256,
        "output_format": "webp",
        "output_compression": 90,
    }
    read = read_images_body(body(size="1024x768", response_format="b64_json", **extras))
    assert read == checked(width=1024, height=768, **extras)


def test_null_means_absent_for_every_optional_field() -> None:
    nulls = dict.fromkeys(set(FIELDS) - {"model", "prompt"})
    assert read_images_body(body(**nulls)) == checked()


def test_standard_fields_that_change_nothing_are_accepted_and_dropped() -> None:
    read = read_images_body(
        body(
            user="u",
            metadata={},
            store=False,
            safety_identifier="s",
            service_tier="auto",
            prompt_cache_key="k",
            quality="standard",
            style="auto",
            moderation="auto",
            background="opaque",
            partial_images=0,
            stream=False,
            size="auto",
        )
    )
    assert read == checked()


def test_whole_numbers_may_be_written_with_a_point() -> None:
    read = read_images_body(body(num_inference_steps=28.0))
    assert read.num_inference_steps == 28
    assert isinstance(read.num_inference_steps, int)


def test_size_and_sides_may_both_be_given_when_they_agree() -> None:
    assert read_images_body(body(size="64x32", width=64)) == checked(width=64, height=32)


@pytest.mark.parametrize(("theirs", "own"), OTHER_NAMES.items())
def test_a_field_may_have_its_name_of_another_service(theirs: str, own: str) -> None:
    read = read_images_body(body(**{theirs: 3}))
    assert read == checked(**{own: 3})
    assert read.spelt == {own: theirs}
    assert read_images_body(body(**{theirs: 3, own: 3})) == read
    with pytest.raises(InvalidRequest, match=rf"{theirs} 3(\.0)? and {own} 4(\.0)? disagree"):
        read_images_body(body(**{theirs: 3, own: 4}))


@pytest.mark.parametrize(
    "size", ["landscape_4_3", "1024x768", {"width": 1024, "height": 768}], ids=str
)
def test_a_size_is_read_as_fal_and_siliconflow_write_it(size: Any) -> None:
    read = read_images_body(body(image_size=size))
    assert read == checked(width=1024, height=768)
    assert read.spelt == {"width": "image_size", "height": "image_size"}
    with pytest.raises(InvalidRequest, match="image_size 1024x768 and width 512 disagree"):
        read_images_body(body(image_size=size, width=512))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"steps": 2}, {"step": 3}, "step 3 and steps 2"),
        ({"size": "128x128"}, {"image_size": "64x64"}, "image_size 64x64 and size 128x128"),
        ({"batch_size": 2}, {"num_images": 3}, "batch_size 2 and num_images 3"),
    ],
)
def test_two_names_of_one_field_that_disagree_are_both_named(
    first: dict[str, Any], second: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"^{said} disagree$") as refused:
        read_images_body(body(**first, **second))
    assert refused.value.param in (*first, *second)


def test_quality_sets_no_tier() -> None:
    for quality in QUALITIES:
        assert read_images_body(body(quality=quality)) == checked()
        assert read_images_body(body(quality=quality, tier="turbo")) == checked(tier="turbo")


@pytest.mark.parametrize("tier", ["lossless", "turbo"])
def test_a_tier_that_is_asked_for_as_quality_is_refused_with_the_right_field(tier: str) -> None:
    with pytest.raises(InvalidRequest, match="asked for with tier"):
        read_images_body(body(quality=tier))


async def test_the_refusal_of_a_side_names_the_field_that_the_caller_sent() -> None:
    painter = Painter()
    for asked, named in [({"size": "63x64"}, "size"), ({"width": 63}, "width")]:
        painter.error = InvalidRequest("width must be a multiple of 16", param="width")
        wire = await post(IMAGES, body(**asked)).run(application(painter))
        assert (wire.status, wire.error["param"]) == (400, named)


def test_a_seed_of_minus_one_is_none() -> None:
    assert read_images_body(body(seed=-1)) == checked()


CASES: list[tuple[str, Any, str | None]] = [
    ("not an object", [], None),
    ("no model", {"prompt": "x"}, "model"),
    ("model a list", body(model=["flux"]), "model"),
    ("no prompt", {"model": "flux"}, "prompt"),
    ("prompt null", body(prompt=None), "prompt"),
    ("prompt a list", body(prompt=["a", "b"]), "prompt"),
    ("prompt a number", body(prompt=3), "prompt"),
    ("negative_prompt a list", body(negative_prompt=["x"]), "negative_prompt"),
    ("n 0", body(n=0), "n"),
    ("n 17", body(n=17), "n"),
    ("n a million", body(n=10**6), "n"),
    ("n a string", body(n="1"), "n"),
    ("n true", body(n=True), "n"),
    ("size with an asterisk", body(size="1024*1024"), "size"),
    ("size with a capital X", body(size="64X64"), "size"),
    ("size negative", body(size="-64x64"), "size"),
    ("size zero", body(size="0x64"), "size"),
    ("size of one side", body(size="64"), "size"),
    ("size empty", body(size=""), "size"),
    ("size with a line break", body(size="64x64\n"), "size"),
    ("size in other digits", body(size="٦٤x٦٤"), "size"),
    ("size of seven digits", body(size="1000000x64"), "size"),
    ("size a list", body(size=[64, 64]), "size"),
    ("width disagrees", body(size="64x64", width=32), "width"),
    ("height disagrees", body(size="64x64", height=32), "height"),
    ("width 0", body(width=0), "width"),
    ("width negative", body(width=-8), "width"),
    ("width a million", body(width=10**6), "width"),
    ("height a string", body(height="64"), "height"),
    ("seed -2", body(seed=-2), "seed"),
    ("seed 2^53", body(seed=2**53), "seed"),
    ("seed a fraction", body(seed=1.5), "seed"),
    ("steps 0", body(num_inference_steps=0), "num_inference_steps"),
    ("steps -1", body(num_inference_steps=-1), "num_inference_steps"),
    ("steps 1e9", body(num_inference_steps=1e9), "num_inference_steps"),
    ("steps 1.5", body(num_inference_steps=1.5), "num_inference_steps"),
    ("steps a string", body(num_inference_steps="28"), "num_inference_steps"),
    ("steps true", body(num_inference_steps=True), "num_inference_steps"),
    ("guidance negative", body(guidance_scale=-1), "guidance_scale"),
    ("guidance NaN", body(guidance_scale=float("nan")), "guidance_scale"),
    ("guidance a string", body(guidance_scale="3.5"), "guidance_scale"),
    ("true_cfg_scale a list", body(true_cfg_scale=[4]), "true_cfg_scale"),
    ("max_sequence_length 0", body(max_sequence_length=0), "max_sequence_length"),
    ("output_format gif", body(output_format="gif"), "output_format"),
    ("output_format PNG", body(output_format="PNG"), "output_format"),
    ("output_compression 101", body(output_compression=101), "output_compression"),
    ("response_format unknown", body(response_format="hex"), "response_format"),
    ("response_format an object", body(response_format={}), "response_format"),
    ("quality turbo", body(quality="turbo"), "quality"),
    ("quality a list", body(quality=["high"]), "quality"),
    ("quality 4k", body(quality="4k"), "quality"),
    ("tier a number", body(tier=1), "tier"),
    ("loras a text", body(loras="a:0.8"), "loras"),
    ("loras without a name", body(loras=[{"scale": 1}]), "loras[0].name"),
    ("style dark", body(style="dark"), "style"),
    ("moderation off", body(moderation="off"), "moderation"),
    ("background transparent", body(background="transparent"), "background"),
    ("partial_images 2", body(partial_images=2), "partial_images"),
    ("partial_images false", body(partial_images=False), "partial_images"),
    ("stream", body(stream="yes"), "stream"),
    ("a stream of two", body(stream=True, n=2), "n"),
    ("progress", body(progress=1), "progress"),
    ("progress without a stream", body(progress=True), "progress"),
    ("image", body(image="data:,"), "image"),
    ("mask", body(mask="data:,"), "mask"),
    ("images", body(images=[{"image_url": "data:,"}]), "images"),
    ("strength", body(strength=0.5), "strength"),
    ("input_fidelity", body(input_fidelity="high"), "input_fidelity"),
    ("complexity", body(complexity="low"), "complexity"),
    ("svg", body(svg={}), "svg"),
    ("frame_count", body(frame_count=2), "frame_count"),
    ("frame_duration_ms", body(frame_duration_ms=2), "frame_duration_ms"),
    ("user a number", body(user=7), "user"),
    ("metadata a string", body(metadata="x"), "metadata"),
    ("store a string", body(store="no"), "store"),
    ("messages", body(messages=[]), "messages"),
    ("unknown", body(stepz=4), "stepz"),
    ("steps at another service", body(steps=0), "steps"),
    ("unknown and empty", body(**{"": 4}), ""),
]


@pytest.mark.parametrize(("given", "param"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_wrong_body_is_refused_and_the_field_named(given: Any, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_images_body(given)
    assert refused.value.param == param
    message = refused.value.message
    assert len(message) < 300
    assert message.isprintable()
    if param is not None:
        assert param in message


def test_every_field_that_can_be_refused_has_a_case() -> None:
    dropped = {"safety_identifier", "service_tier", "prompt_cache_key"}
    assert set(OWN_FIELDS) - dropped <= {param for _, _, param in CASES}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=4,
)
LIKELY = st.sampled_from(["auto", "64x64", "png", "b64_json", 1, 28.0, 0.5, False, 0])
BODY = st.fixed_dictionaries(
    {"model": st.just("m") | JSON, "prompt": st.text(max_size=4) | JSON},
    optional={name: LIKELY | JSON for name in FIELDS if name not in ("model", "prompt")},
)


@settings(max_examples=150)
@given(BODY | JSON)
def test_any_json_is_read_or_refused_and_a_checked_body_reads_as_itself(any_body: Any) -> None:
    try:
        read = read_images_body(any_body)
    except InvalidRequest:
        return
    fields = {name: value for name, value in asdict(read).items() if value is not None}
    del fields["spelt"], fields["asks_check"]
    assert read_images_body(fields) == read
