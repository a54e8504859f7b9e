"""The parser of tensor names: total, in linear time, and of one meaning."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.models.flux.adapters.names import (
    DOTTED_PARTS,
    FLAT_PARTS,
    FOREIGN_PREFIXES,
    HALVES,
    WRAPPERS,
    foreign_kind,
    read_name,
    split_part,
)
from predictors.models.flux.adapters.places import PARTS
from tests.cpu_time import assert_linear
from tests.models.flux.adapters.adapter_files import PLACES

FRAGMENTS = st.sampled_from(
    [
        *WRAPPERS,
        *(prefix for prefix, _ in (*DOTTED_PARTS, *FLAT_PARTS, *FOREIGN_PREFIXES)),
        *(f".{half}" for half in HALVES),
        ".weight", ".alpha", ".bias", ".default", ".", "..", "_", "lora", "processor", ".diff",
        "transformer_blocks.0.attn.to_q", "transformer_blocks_0_attn_to_q", "double_blocks.0.",
        "img_attn.qkv", "single_blocks.1.linear1", "text_model.encoder.layers.0.self_attn.q_proj",
        "é", "\x00", "9" * 40,
    ]
)  # fmt: skip
NAMES = st.one_of(st.text(max_size=80), st.lists(FRAGMENTS, max_size=8).map("".join))


@given(NAMES)
def test_any_text_has_one_meaning_or_none(name: str) -> None:
    half = read_name(name, PLACES)
    kind = foreign_kind(name, PLACES)
    if half is None:
        assert kind is None or kind
        return
    assert half.place.pieces
    assert half.part in PARTS
    assert all(piece.path.split(".")[0] == half.part for piece in half.place.pieces)


@given(st.lists(st.sampled_from(WRAPPERS), max_size=6), NAMES)
def test_wrappers_change_nothing_however_many_there_are(wrappers: list[str], name: str) -> None:
    flat = tuple(prefix for prefix, _ in FLAT_PARTS)
    if not name.startswith((*WRAPPERS, *flat)):
        assert split_part("".join(wrappers) + name) == split_part(name)


def test_no_two_layers_share_a_name_without_dots() -> None:
    dotted = {key: place.name for key, place in PLACES._dotted.items()}
    flat: dict[tuple[str, str], str] = {}
    for (part, path), name in dotted.items():
        assert flat.setdefault((part, path.replace(".", "_")), name) == name


HOSTILE = (
    "module.", "base_model.model.", "a.", ".", "_", "lora_unet_", "lora_A.", "x.weight.",
    "transformer.", "diff.", "9", "text_encoders.clip_l.transformer.",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_long_name_is_read_in_linear_time(text: str) -> None:
    def reading(count: int) -> Callable[[], object]:
        name = text * count + ".lora_A.weight"
        return lambda: (read_name(name, PLACES), foreign_kind(name, PLACES))

    assert_linear(reading, 25_000 // len(text))
