"""LoHa and LoKr are read as the low-rank changes that they are: their halves multiply to what
LyCORIS computes, and what does not fit is refused by a tensor's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from predictors.errors import InvalidRequest
from predictors.models.flux.adapters.reading import StoredAdapter
from tests.models.flux.adapters.adapter_files import ATTENTION, PLACES, Tensors, read, saved

Q = f"{ATTENTION}.to_q"
SPELLINGS = ("lycoris_transformer_blocks_0_attn_to_q", Q, f"base_model.model.{Q}")
SIDE = 160  # of the embedded checkpoint's attention
DIMENSION, ALPHA = 4, 2.0


def drawn(*shape: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(list(shape))
    return rng.normal(size=shape).astype(np.float32)


LOHA = {
    "hada_w1_a": drawn(SIDE, DIMENSION), "hada_w1_b": drawn(DIMENSION, SIDE),
    "hada_w2_a": drawn(SIDE, DIMENSION + 1), "hada_w2_b": drawn(DIMENSION + 1, SIDE),
}  # fmt: skip
WHOLE = {"lokr_w1": drawn(8, 8), "lokr_w2": drawn(20, 20)}
ONE_IN_FACTORS = {
    "lokr_w1": drawn(8, 8), "lokr_w2_a": drawn(20, DIMENSION), "lokr_w2_b": drawn(DIMENSION, 20),
}  # fmt: skip
OBLONG = {
    "lokr_w1": drawn(4, 10), "lokr_w2_a": drawn(40, DIMENSION), "lokr_w2_b": drawn(DIMENSION, 16),
}  # fmt: skip
BOTH_IN_FACTORS = {
    "lokr_w1_a": drawn(8, DIMENSION), "lokr_w1_b": drawn(DIMENSION, 8),
    "lokr_w2_a": drawn(20, DIMENSION), "lokr_w2_b": drawn(DIMENSION, 20),
}  # fmt: skip
KINDS: Mapping[str, tuple[Tensors, int, float]] = {
    "LoHa": (LOHA, DIMENSION * (DIMENSION + 1), ALPHA / DIMENSION),
    "LoKr, whole": (WHOLE, SIDE, 1.0),
    "LoKr, one in factors": (ONE_IN_FACTORS, 8 * DIMENSION, ALPHA / DIMENSION),
    "LoKr, oblong": (OBLONG, 4 * DIMENSION, ALPHA / DIMENSION),
    "LoKr, both in factors": (BOTH_IN_FACTORS, DIMENSION**2, ALPHA / DIMENSION),
}
"""Tensors, the rank of the change, and the factor with an alpha of `ALPHA`."""


def of_lycoris(tensors: Tensors) -> NDArray[Any]:
    """The change without its factor, by LyCORIS' formulas."""
    if "hada_w1_a" in tensors:
        first = tensors["hada_w1_a"] @ tensors["hada_w1_b"]
        return np.asarray(first * (tensors["hada_w2_a"] @ tensors["hada_w2_b"]))
    sides = [
        tensors[name] if name in tensors else tensors[f"{name}_a"] @ tensors[f"{name}_b"]
        for name in ("lokr_w1", "lokr_w2")
    ]
    return np.kron(*sides)


def stored(folder: Path, layer: str, tensors: Tensors, **more: float) -> StoredAdapter:
    named = {f"{layer}.{kind}": value for kind, value in tensors.items()}
    alphas = {f"{layer}.{kind}": np.array(value, np.float32) for kind, value in more.items()}
    return read(saved(folder, named | alphas))


@pytest.mark.parametrize("layer", SPELLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_change_is_what_lycoris_computes(kind: str, layer: str, tmp_path: Path) -> None:
    tensors, rank, factor = KINDS[kind]
    change = stored(tmp_path, layer, tensors, alpha=ALPHA).changes[Q]
    assert change.rank == rank
    expected = factor * of_lycoris(tensors)
    np.testing.assert_allclose(change.up @ change.down, expected, rtol=1e-4, atol=1e-4)


def test_without_an_alpha_the_factor_is_one(tmp_path: Path) -> None:
    change = stored(tmp_path, Q, ONE_IN_FACTORS).changes[Q]
    expected = of_lycoris(ONE_IN_FACTORS)
    np.testing.assert_allclose(change.up @ change.down, expected, rtol=1e-4, atol=1e-4)


def test_a_fused_layer_is_cut_into_its_linears(tmp_path: Path) -> None:
    fused = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = ONE_IN_FACTORS | {"lokr_w1": drawn(24, 8)}
    changes = stored(tmp_path, fused, tensors).changes
    assert list(changes) == [f"{ATTENTION}.to_{part}" for part in "kqv"]
    expected = of_lycoris(tensors).reshape(3, SIDE, SIDE)
    for part, own in zip("qkv", expected, strict=True):
        change = changes[f"{ATTENTION}.to_{part}"]
        np.testing.assert_allclose(change.up @ change.down, own, rtol=1e-4, atol=1e-4)


REFUSED: Mapping[str, tuple[Tensors, str]] = {
    "a factor is missing": (
        {"lokr_w1": WHOLE["lokr_w1"], "lokr_w2_a": drawn(20, 4)}, "but not its lokr_w2_b",
    ),
    "a matrix is missing": ({"lokr_w1": WHOLE["lokr_w1"]}, "but not its lokr_w2"),
    "half of a LoHa": ({"hada_w1_a": LOHA["hada_w1_a"]}, "but not its hada_w1_b"),
    "another size": (WHOLE | {"lokr_w2": drawn(21, 20)}, "asks for [160, 160]"),
    "factors that do not fit": (
        ONE_IN_FACTORS | {"lokr_w2_b": drawn(5, 20)}, "its factors are [20, 4] and [5, 20]",
    ),
    "products that do not fit": (
        LOHA | {"hada_w2_b": drawn(5, 150)}, "its products are [160, 160] and [160, 150]",
    ),
    "a convolution": (WHOLE | {"lokr_w1": drawn(8, 8, 1, 1)}, "have two dimensions"),
    "a LoRA as well": (
        WHOLE | {"lora_A.weight": drawn(4, SIDE), "lora_B.weight": drawn(SIDE, 4)},
        "changes one layer in two ways",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_a_tensors_name(case: str, tmp_path: Path) -> None:
    tensors, said = REFUSED[case]
    with pytest.raises(InvalidRequest) as refused:
        stored(tmp_path, Q, tensors)
    assert said in refused.value.message
    assert Q in refused.value.message


OVER_RANK = {
    "two whole matrices": (
        WHOLE,
        r"has rank 160; at most 16 .*: a LoKr of two whole matrices, \[8, 8\] and \[20, 20\], "
        r"whose ranks multiply \(8 x 20\); merge it into its model",
    ),
    "one whole matrix": (ONE_IN_FACTORS, r"has rank 32; at most 16 .*\); merge the adapter into"),
    "LoHa": (LOHA, r"has rank 20; at most 16 .*\); merge the adapter into its model"),
}


@pytest.mark.parametrize(("tensors", "expected"), OVER_RANK.values(), ids=OVER_RANK)
def test_a_rank_beyond_the_limit_says_why_and_to_merge(
    tensors: Tensors, expected: str, tmp_path: Path
) -> None:
    named = {f"{Q}.{kind}": value for kind, value in tensors.items()}
    with pytest.raises(InvalidRequest, match=expected):
        read(saved(tmp_path, named), PLACES, max_rank=16)


def test_a_norm_of_a_dora_beside_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="a DoRA adapter"):
        stored(tmp_path, Q, WHOLE, dora_scale=1.0)
