"""V2 and OpenAI bodies to requests and back: names, types, rows, files."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from predictors.base import Answer
from predictors.diffusion.checker import make_checker
from predictors.diffusion.codec import PICTURE_INPUTS, ImageCodec
from predictors.diffusion.files import PictureWriter
from predictors.diffusion.limits import make_limits
from predictors.diffusion.request import (
    ImageParameters,
    ImageRequest,
    ImageResult,
    SourcePicture,
    Tiers,
)
from predictors.diffusion.sampling import plan_calls
from predictors.diffusion.sent_pictures import SentRow
from predictors.errors import InvalidRequest, TooLarge
from predictors.models.flux.config import read_checkpoint
from predictors.protocol.openai.edits_body import read_edits_body
from predictors.protocol.openai.images_body import QUALITIES, read_images_body
from predictors.protocol.seeds import MAX_SEED
from predictors.protocol.v2.values import Tensor, V2Request
from predictors.protocol.v2.wire_json import decode_json_request, encode_json_response
from predictors.settings import FluxSettings
from tests.diffusion.driver import CHECKPOINT
from tests.diffusion.red_checker import write_red_checker
from tests.http.echo import PIXEL

GOLDEN = Path(__file__).parents[1] / "golden" / "v2"
LIMITS = make_limits(read_checkpoint(CHECKPOINT)[0], FluxSettings(tiers="lossless,high,turbo"))
CODEC = ImageCodec("codec", LIMITS, "float32", PictureWriter("codec", png_level=1))


def texts(name: str, *rows: str | bytes) -> Tensor:
    data = [row.encode() if isinstance(row, str) else row for row in rows]
    return Tensor(name, "BYTES", (len(rows),), data, text=True)


def ints(name: str, *rows: int) -> Tensor:
    return Tensor(name, "INT64", (len(rows),), rows)


def v2(*inputs: Tensor, outputs: tuple[str, ...] = (), **parameters: Any) -> V2Request:
    return V2Request("flux", "id-1", inputs, parameters, outputs)


def streamed(*inputs: Tensor, **parameters: Any) -> V2Request:
    return replace(v2(*inputs, **parameters), is_streamed=True)


def answer(image: ImageParameters, *, queue_ms: int = 1, compute_ms: int = 2) -> Answer[Any, Any]:
    request = LIMITS.resolve(image)
    rows, columns = np.mgrid[: request.height, : request.width]
    pixels = np.stack((rows, columns, rows ^ columns), -1).astype(np.uint8)
    return Answer(request, (ImageResult(pixels, 7),), queue_ms, compute_ms)


def picture(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def test_previews_and_steps_are_asked_for_where_answers_have_parts() -> None:
    (row,) = CODEC.decode_v2(streamed(texts("prompt", "a"), partial_images="2", progress=True))
    assert (row.partial_images, row.progress, row.is_watched) == (2, True, True)
    rows = CODEC.decode_v2(streamed(PROMPT, partial_images=0, progress=False))
    assert not any(row.is_watched for row in rows)
    (drawn,) = CODEC.decode_images(
        read_images_body({"model": "x", "prompt": "a", "stream": True, "partial_images": 3})
    )
    assert (drawn.partial_images, drawn.progress) == (3, False)


# -- V2 in -----------------------------------------------------------------------------------------
def test_rows_share_parameters_and_count_seeds_up() -> None:
    request = v2(texts("prompt", "a", "b", "c"), seed=7, width=96, guidance_scale=2, height="64")
    rows = CODEC.decode_v2(request)
    assert [row.prompt for row in rows] == ["a", "b", "c"]
    assert [row.seed for row in rows] == [7, 8, 9]
    assert {(row.width, row.height, row.guidance_scale) for row in rows} == {(96, 64, 2.0)}


def test_the_seed_tensor_overrides_the_parameter() -> None:
    rows = CODEC.decode_v2(v2(texts("prompt", "a", "b"), ints("seed", 5, 3), seed=100))
    assert [row.seed for row in rows] == [5, 3]


def test_negative_prompts_turn_guidance_on_row_by_row() -> None:
    request = v2(texts("prompt", "a", "b"), texts("negative_prompt", "x", ""))
    for asked, expected in (
        (request, 4.0),
        (replace(request, parameters={"true_cfg_scale": 2}), 2),
    ):
        rows = CODEC.decode_v2(asked)
        found = [(row.negative_prompt, row.true_cfg_scale) for row in rows]
        assert found == [("x", expected), (None, 1.0)]


def test_white_space_is_no_negative_prompt() -> None:
    plain = CODEC.decode_v2(v2(texts("prompt", "a"), seed=1))
    for blank in ("", " \n\t", "\u3000"):
        assert CODEC.decode_v2(
            v2(texts("prompt", "a"), texts("negative_prompt", blank), seed=1)
        ) == (plain)
        assert images(prompt="a", negative_prompt=blank, seed=1) == plain


def test_a_scale_that_no_row_can_use_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="needs a negative_prompt"):
        CODEC.decode_v2(v2(PROMPT, texts("negative_prompt", "", " "), true_cfg_scale=4.0))


def test_unseeded_rows_count_up_from_a_seed_that_is_drawn() -> None:
    for seeds in ({}, {"seed": -1}, {"seed": "-1"}):
        first, second = CODEC.decode_v2(v2(texts("prompt", "a", "b"), **seeds))
        assert second.seed == first.seed + 1
    drawn = {CODEC.decode_v2(v2(texts("prompt", "a")))[0].seed for _ in range(8)}
    assert len(drawn) == 8


def test_a_seed_of_minus_one_in_the_tensor_draws_that_rows_seed() -> None:
    drawn = [CODEC.decode_v2(v2(PROMPT, ints("seed", 5, -1))) for _ in range(4)]
    assert {rows[0].seed for rows in drawn} == {5}
    assert len({rows[1].seed for rows in drawn}) == 4


def test_shape_n_by_one_and_the_edges_parameters_are_accepted() -> None:
    column = Tensor("prompt", "BYTES", (2, 1), [b"a", b"b"])
    rows = CODEC.decode_v2(v2(column, binary_data_output=True, timeout=5_000_000))
    assert len(rows) == 2


PROMPT = texts("prompt", "a", "b")
WRONG: list[tuple[V2Request, str | None, str]] = [
    (v2(), "prompt", "'prompt' is required"),
    (v2(texts("negative_prompt", "a")), "prompt", "'prompt' is required"),
    (v2(PROMPT, texts("promt", "a")), "promt", "unknown input 'promt'"),
    (v2(PROMPT, widht=64), "widht", "unknown parameter 'widht'"),
    (v2(ints("prompt", 1)), "prompt", "takes BYTES"),
    (v2(PROMPT, Tensor("seed", "FP32", (2,), (1.0, 2.0))), "seed", "takes INT64"),
    (v2(PROMPT, ints("seed", 1)), None, "disagree on the number of rows"),
    (v2(PROMPT, texts("negative_prompt", "a", "b", "c")), None, "disagree"),
    (v2(texts("prompt", "a", b"\xff\xfe")), "prompt", "row 1: prompt is not UTF-8"),
    (v2(texts("prompt", "a", "b" * 40_000)), "prompt", "row 1: prompt has 40000 bytes"),
    (v2(PROMPT, texts("negative_prompt", "a" * 40_000, "")), "negative_prompt", "row 0: "),
    (v2(PROMPT, ints("seed", 1, -2)), "seed", "row 1: seed must be from 0"),
    (v2(PROMPT, seed=MAX_SEED), "seed", "passes the largest seed"),
    (v2(PROMPT, seed=-2), "seed", "seed must be from 0"),
    (v2(PROMPT, seed=1.5), "seed", "whole number"),
    (v2(PROMPT, width=100), "width", "multiple of 16"),
    (v2(PROMPT, width=True), "width", "whole number"),
    (v2(PROMPT, guidance_scale="x"), "guidance_scale", "finite number"),
    (v2(PROMPT, guidance_scale=float("inf")), "guidance_scale", "finite number"),
    (v2(PROMPT, true_cfg_scale=2.0), "true_cfg_scale", "needs a negative_prompt"),
    (v2(PROMPT, output_format=3), "output_format", "must be a string"),
    (v2(PROMPT, tier=3), "tier", "must be a string"),
    (v2(PROMPT, metadata=3), "metadata", "must be a string"),
    (v2(PROMPT, metadata="all"), "metadata", "metadata must be one of default, full, not 'all'"),
    (v2(PROMPT, partial_images=1), "partial_images", "needs an answer in parts"),
    (v2(PROMPT, progress=True), "progress", "needs an answer in parts"),
    (v2(PROMPT, progress="true"), "progress", "must be true or false"),
    (v2(PROMPT, partial_images=1.5), "partial_images", "whole number"),
    (
        streamed(PROMPT, partial_images=1),
        "partial_images",
        "for one picture; the request has 2",
    ),
    (streamed(texts("prompt", "a"), partial_images=4), "partial_images", "from 0 to 3, not 4"),
    (streamed(texts("prompt", "a"), partial_images=-1), "partial_images", "from 0 to 3, not -1"),
    (v2(PROMPT, tier="fast"), "tier", "'fast' is not loaded here; loaded are lossless, high, tu"),
]


@pytest.mark.parametrize(("request_", "param", "words"), WRONG)
def test_a_wrong_v2_request_is_refused_by_name(
    request_: V2Request, param: str | None, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        CODEC.decode_v2(request_)
    assert refusal.value.param == param
    assert words in str(refusal.value)


def test_a_prompt_that_is_too_large_stays_too_large_when_its_row_is_named() -> None:
    with pytest.raises(TooLarge):
        CODEC.decode_v2(v2(texts("prompt", "a", "b" * 2**20)))


@given(
    st.lists(st.text(max_size=20), min_size=1, max_size=5),
    st.integers(0, MAX_SEED - 5),
    st.integers(4, 20),
    st.integers(1, 50),
    st.floats(0, 100),
)
def test_valid_fields_arrive_unchanged(
    prompts: list[str], seed: int, side: int, steps: int, guidance: float
) -> None:
    parameters = {"width": 16 * side, "num_inference_steps": str(steps), "seed": seed}
    request = v2(texts("prompt", *prompts), guidance_scale=repr(guidance), **parameters)
    for row, found in enumerate(CODEC.decode_v2(request)):
        assert found == LIMITS.resolve(
            ImageParameters(
                prompts[row],
                seed=seed + row,
                width=16 * side,
                num_inference_steps=steps,
                guidance_scale=guidance,
            )
        )


# -- V2 out ----------------------------------------------------------------------------------------
def test_the_response_has_files_seeds_and_the_shared_parameters() -> None:
    image = ImageParameters("a", seed=4, width=96, height=64, num_inference_steps=3)
    answers = [answer(image, queue_ms=5, compute_ms=1), answer(image, queue_ms=2, compute_ms=9)]
    response = CODEC.encode_v2(v2(PROMPT), answers)
    image, seed = response.outputs
    assert (image.name, image.datatype, image.shape) == ("image", "BYTES", (2,))
    assert image.parameters == {"content_type": "image/png"}
    assert (seed.name, seed.datatype, list(seed.data)) == ("seed", "INT64", [4, 4])
    assert (response.model, response.id) == ("flux", "id-1")
    assert response.parameters == {
        "num_inference_steps": 3,
        "num_model_steps": 3,
        "prompt_tokens_unread": 0,
        "provenance": "xmp",
        "width": 96,
        "height": 64,
        "tier": "lossless",
        "precision": "float32",
        "queue_ms": 5,
        "compute_ms": 9,
    }
    for file in image.data:
        assert isinstance(file, bytes)
        assert np.array_equal(np.asarray(picture(file)), answers[0].chunks[0].pixels)


EFFORTS = [
    (ImageParameters("a"), ("lossless", "float32", 28, 28)),
    (ImageParameters("a", tier="high"), ("high", "float8_e4m3fn", 28, 28)),
    (ImageParameters("a", tier="turbo"), ("turbo", "float8_e4m3fn", 28, sum(plan_calls(28)))),
    (ImageParameters("a", tier="turbo", num_inference_steps=4), ("turbo", "float8_e4m3fn", 4, 4)),
]


@pytest.mark.parametrize(("image", "effort"), EFFORTS)
def test_both_protocols_show_tier_precision_and_steps(
    image: ImageParameters, effort: tuple[Any, ...]
) -> None:
    v2_says = CODEC.encode_v2(v2(PROMPT, outputs=("seed",)), [answer(image)]).parameters
    openai_says = CODEC.encode_images([answer(image)])
    for says in (v2_says, openai_says):
        names = ("tier", "precision", "num_inference_steps", "num_model_steps")
        assert tuple(says[name] for name in names) == effort


def test_turbo_without_fp8_shows_the_precision_of_the_base_weights() -> None:
    codec = replace(CODEC, limits=replace(LIMITS, tiers=Tiers(("lossless", "turbo"), "lossless")))
    says = codec.encode_images([answer(ImageParameters("a", tier="turbo"))])
    assert (says["tier"], says["precision"]) == ("turbo", "float32")


def test_only_requested_outputs_are_returned() -> None:
    answers = [answer(ImageParameters("a"))]
    for names in (("seed",), ("image",), ("seed", "image")):
        response = CODEC.encode_v2(v2(PROMPT, outputs=names), answers)
        assert {tensor.name for tensor in response.outputs} == set(names)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_files_have_the_requested_format_and_hold_no_prompt(kind: str) -> None:
    one = answer(ImageParameters("a secret prompt", output_format=kind, width=96, height=64))
    file = CODEC.encode(one)
    opened = picture(file)
    assert (opened.format, opened.size, opened.mode) == (kind.upper(), (96, 64), "RGB")
    assert b"secret" not in file
    assert CODEC.encode(one) == file


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_output_compression_is_the_quality(kind: str) -> None:
    sizes = [
        len(CODEC.encode(answer(ImageParameters("a", output_format=kind, output_compression=q))))
        for q in (0, 50, 100)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


# -- OpenAI ----------------------------------------------------------------------------------------
def images(**fields: Any) -> list[ImageRequest]:
    return CODEC.decode_images(read_images_body({"model": "flux", "prompt": "a", **fields}))


def test_openai_and_v2_make_the_same_request() -> None:
    openai = images(
        n=2,
        size="96x64",
        seed=5,
        num_inference_steps=3,
        guidance_scale=2.5,
        negative_prompt="b",
        true_cfg_scale=3,
        max_sequence_length=32,
        output_format="webp",
        output_compression=80,
        tier="high",
        metadata="full",
        user="me",
    )
    assert openai == CODEC.decode_v2(
        v2(
            texts("prompt", "a", "a"),
            texts("negative_prompt", "b", "b"),
            width=96,
            height=64,
            seed=5,
            num_inference_steps=3,
            guidance_scale=2.5,
            true_cfg_scale=3,
            max_sequence_length=32,
            output_format="webp",
            output_compression=80,
            tier="high",
            metadata="full",
        )
    )


def test_openais_object_of_tags_changes_nothing_in_the_file() -> None:
    assert images(seed=1, metadata={"full": "yes"}) == images(seed=1, metadata="default")
    for wrong in ("Full", "", 1, True, ["full"]):
        with pytest.raises(InvalidRequest, match="metadata must be 'default' or 'full'"):
            images(metadata=wrong)


def test_quality_sets_no_tier() -> None:
    for quality in QUALITIES:
        assert images(quality=quality, seed=1) == images(seed=1)


def test_auto_is_the_checkpoints_size_and_png_of_compression_100_is_plain_png() -> None:
    (request,) = images(size="auto", output_compression=100)
    assert (request.width, request.height) == (LIMITS.default_width, LIMITS.default_height)
    assert request.output_format == "png"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "100x64"}, "width"),
        ({"size": "64x4096"}, "height"),
        ({"seed": MAX_SEED, "n": 2}, "seed"),
        ({"true_cfg_scale": 2}, "true_cfg_scale"),
        ({"num_inference_steps": 101}, "num_inference_steps"),
        ({"guidance_scale": 1000}, "guidance_scale"),
        ({"max_sequence_length": 1000}, "max_sequence_length"),
        ({"output_compression": 10}, "output_compression"),
        ({"prompt": "x" * 40_000}, "prompt"),
        ({"tier": "best"}, "tier"),
    ],
)
def test_fields_that_only_the_model_can_check_are_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        images(**fields)
    assert refusal.value.param == param


def test_the_openai_response_has_pictures_seeds_usage_and_timings() -> None:
    image = ImageParameters(
        "a", seed=4, width=96, height=64, num_inference_steps=3, output_format="jpeg"
    )
    reply = CODEC.encode_images([answer(image, queue_ms=5), answer(image, compute_ms=9)])
    assert isinstance(reply["created"], int)
    assert [entry["seed"] for entry in reply["data"]] == [4, 4]
    for entry in reply["data"]:
        file = base64.b64decode(entry["b64_json"], validate=True)
        assert picture(file).format == "JPEG"
    assert {k: v for k, v in reply.items() if k not in {"created", "data"}} == {
        "output_format": "jpeg",
        "size": "96x64",
        "usage": {
            "input_tokens": 14,
            "input_tokens_details": {"text_tokens": 14, "image_tokens": 0},
            "output_tokens": 48,
            "total_tokens": 62,
        },
        "timings": {"queue_ms": 5, "compute_ms": 9},
        "tier": "lossless",
        "precision": "float32",
        "num_inference_steps": 3,
        "num_model_steps": 3,
        "prompt_tokens_unread": 0,
        "provenance": "xmp",
    }


# -- pictures in -----------------------------------------------------------------------------------
URL = "data:image/png;base64,aGVsbG8="  # "hello", which is decoded later


def asked_rows(*inputs: Tensor, **parameters: Any) -> list[SentRow]:
    return CODEC.read_v2(v2(*inputs, **parameters))


def test_a_v2_row_has_a_picture_of_its_own_or_the_shared_one() -> None:
    prompts = texts("prompt", "a", "b")
    own = asked_rows(prompts, texts("image", URL, "aGVsbG8="), strength="0.5")
    assert [(x.sent.image, x.sent.mask, x.sent.row) for x in own if x.sent] == [
        (b"hello", None, 0),
        (b"hello", None, 1),
    ]
    assert {row.parameters.strength for row in own} == {0.5}
    shared = asked_rows(prompts, texts("image", URL), texts("mask", URL))
    assert shared[0].sent is shared[1].sent
    assert shared[0].sent is not None
    assert (shared[0].sent.mask, shared[0].sent.row) == (b"hello", None)
    masks = asked_rows(prompts, texts("image", URL), texts("mask", URL, "aGk="))
    assert [row.sent.mask for row in masks if row.sent] == [b"hello", b"hi"]
    raw = Tensor("image", "BYTES", (1,), [b"\x89PNG"])
    assert [row.sent.image for row in asked_rows(texts("prompt", "a"), raw) if row.sent] == [
        b"\x89PNG"
    ]


@pytest.mark.parametrize(
    ("inputs", "parameters", "param", "reason"),
    [
        ([texts("image", URL, URL, URL)], {}, None, "prompt has 2, image has 3"),
        ([texts("image", URL), texts("mask", URL, URL, URL)], {}, None, "mask has 3"),
        ([texts("mask", URL)], {}, "mask", "'mask' needs an input 'image'"),
        ([texts("image", "!!")], {}, "image", "image is not base64"),
        ([ints("image", 1)], {}, "image", "it takes BYTES"),
        ([texts("image", URL)], {"strength": 1.5}, "strength", "from 0 to 1"),
        ([texts("image", URL)], {"strength": "much"}, "strength", "finite number"),
        ([texts("image", URL)], {"width": 17}, "width", "multiple of 16"),
        ([], {"strength": 0.5}, "strength", "strength is for requests with an image"),
    ],
)
def test_wrong_pictures_of_a_v2_request_are_refused_by_name(
    inputs: list[Tensor], parameters: dict[str, Any], param: str | None, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        CODEC.decode_v2(v2(texts("prompt", "a", "b"), *inputs, **parameters))
    assert caught.value.param == param


def test_an_edit_takes_one_picture_for_all_that_it_draws() -> None:
    body = {"model": "codec", "prompt": "a", "n": 2, "seed": 5, "image": URL, "strength": 0.25}
    rows = CODEC.read_edits(read_edits_body(body | {"mask": {"image_url": URL}}))
    assert [row.parameters.seed for row in rows] == [5, 6]
    assert rows[0].sent is rows[1].sent
    assert rows[0].sent is not None
    assert (rows[0].sent.image_field, rows[0].sent.mask_field) == ("image", "mask.image_url")
    assert rows[0].parameters.strength == 0.25
    several = {key: body[key] for key in ("model", "prompt")} | {"images": [{"image_url": URL}] * 2}
    with pytest.raises(InvalidRequest, match="images holds 2 pictures; codec takes one") as caught:
        CODEC.read_edits(read_edits_body(several))
    assert caught.value.param == "images"


def edited(width: int, height: int, **asked_for: Any) -> Answer[Any, Any]:
    pixels = np.zeros((height, width, 3), np.uint8)
    asked = ImageParameters("a", source=SourcePicture(pixels), **({"seed": 1} | asked_for))
    return replace(answer(asked), chunks=(ImageResult(pixels, 7),))


def test_the_answer_counts_the_patches_that_were_read_and_says_the_strength() -> None:
    found = CODEC.encode_images([edited(64, 96)])
    assert found["usage"]["input_tokens_details"] == {"text_tokens": 7, "image_tokens": 24}
    assert found["usage"]["total_tokens"] == 7 + 24 + 24
    assert found["strength"] == 0.6
    assert "strength" not in CODEC.encode_images([answer(ImageParameters("a"))])


def test_sizes_that_rows_do_not_share_are_no_parameters() -> None:
    request = v2(texts("prompt", "a", "b"))
    one = CODEC.encode_v2(request, [edited(64, 96), edited(64, 96)]).parameters
    assert (one["width"], one["height"], one["strength"]) == (64, 96, "0.6")
    two = CODEC.encode_v2(request, [edited(64, 96), edited(96, 64)]).parameters
    assert {"width", "height"}.isdisjoint(two)


def test_an_edit_in_v2_json_matches_the_golden_files() -> None:
    raw = (GOLDEN / "edit_request.json").read_bytes()
    request = decode_json_request(raw, {}, "codec", files=PICTURE_INPUTS)
    rows = CODEC.read_v2(request)
    sent = [row.sent for row in rows if row.sent is not None]
    assert [(each.image, each.mask, each.row) for each in sent] == [
        (PIXEL, PIXEL, 0),
        (PIXEL, PIXEL, 1),
    ]
    answers = [
        edited(64, 96, strength=row.parameters.strength, seed=row.parameters.seed) for row in rows
    ]
    body, _ = encode_json_response(CODEC.encode_v2(request, answers), request)
    assert body == (GOLDEN / "edit_response.json").read_bytes().rstrip(b"\n")


# -- a check that is asked for ---------------------------------------------------------------------
ASKING = [
    {"enable_safety_checker": True}, {"disable_safety_checker": False}, {"safety_tolerance": 2},
    {"safety_tolerance": "5"}, {"safety_tolerance": "strict"},
]  # fmt: skip
NOT_ASKING = [
    {"enable_safety_checker": False}, {"disable_safety_checker": True}, {"safety_tolerance": 6},
    {"safety_tolerance": "6"}, {"safety_tolerance": "10"}, {"safety_tolerance": 10**400},
    {"enable_safety_checker": None}, {"moderation": "auto"},
]  # fmt: skip
DRAW: dict[str, Any] = {"model": "codec", "prompt": "a", "seed": 1}
FILE = "data:image/png;base64," + base64.b64encode(PIXEL).decode()


@pytest.fixture
def checked(tmp_path: Path) -> Iterator[ImageCodec]:
    """The codec of a model with a checker."""
    folder = write_red_checker(tmp_path)
    checker = make_checker("codec", FluxSettings(checker=str(folder), checker_labels="red"))
    assert checker is not None
    yield replace(CODEC, checker=checker)
    checker.close()


@pytest.mark.parametrize("fields", ASKING, ids=lambda x: str(x)[:40])
def test_a_check_that_is_not_made_is_refused_by_name(fields: dict[str, Any]) -> None:
    (name,) = fields
    drawn = read_images_body(DRAW | fields)
    edited = read_edits_body(DRAW | fields | {"images": [{"image_url": FILE}]})
    for read in (lambda: CODEC.decode_images(drawn), lambda: CODEC.read_edits(edited)):
        with pytest.raises(InvalidRequest, match="asks for a check of the picture") as refused:
            read()
        assert refused.value.param == name


@pytest.mark.parametrize("fields", NOT_ASKING, ids=str)
def test_what_asks_for_no_check_is_taken(fields: dict[str, Any]) -> None:
    drawn = read_images_body(DRAW | fields)
    assert CODEC.decode_images(drawn) == CODEC.decode_images(read_images_body(DRAW))


@pytest.mark.parametrize("fields", [*ASKING, *NOT_ASKING], ids=lambda x: str(x)[:40])
def test_a_model_that_checks_takes_all_of_them(checked: ImageCodec, fields: dict[str, Any]) -> None:
    drawn = read_images_body(DRAW | fields)
    assert checked.decode_images(drawn) == CODEC.decode_images(read_images_body(DRAW))
