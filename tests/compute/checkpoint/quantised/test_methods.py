"""Each method's layers give, bit for bit in float32, the weights that their owner makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from predictors.compute.checkpoint.quantised.source import PlainTensors
from tests.compute.checkpoint.quantised.folders import folder_of, layer
from tests.compute.checkpoint.quantised.writers import (
    GOLDEN,
    METHODS,
    awq_words,
    comfy,
    fp8_in_blocks,
    gptq,
    in_eight_bits,
    in_four_bits,
    words_in_order,
)

WEIGHT = torch.randn(160, 192, generator=torch.Generator().manual_seed(3))
PLAIN = {"norm.weight": torch.linspace(0, 1, 7), "a.bias": torch.ones(160)}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_layer_is_the_weight_that_its_owner_makes_of_it(tmp_path: Path, method) -> None:
    written = method.write(WEIGHT)
    tensors = PLAIN | layer("a", written.stored)
    with PlainTensors(folder_of(tmp_path / "c", tensors, method.config), "it") as opened:
        assert set(opened) == {*PLAIN, "a.weight"}
        assert opened.shape("a.weight") == (160, 192)
        target = torch.empty(160, 192)
        padded = torch.full((170, 192), 7.0)
        biases = torch.empty(160, dtype=torch.bfloat16)
        opened.copy_into([(target, "a.weight"), (padded[5:165], "a.weight"), (biases, "a.bias")])
        assert torch.equal(opened.read("a.weight"), written.weight)
        assert torch.equal(opened.read("norm.weight"), PLAIN["norm.weight"])
    assert torch.equal(target, written.weight)
    assert torch.equal(padded[5:165], written.weight)
    assert bool((padded[:5] == 7).all())
    assert bool((biases == 1).all())
    # a method that lost the weight would pass all that
    assert (target - WEIGHT).abs().mean() < 0.2 * WEIGHT.abs().mean()


@pytest.mark.parametrize("method", ["fp8 per channel", "packed int4 in groups", "AWQ", "nf4"])
def test_a_weight_is_rounded_once_to_the_serving_type(tmp_path: Path, method: str) -> None:
    written = METHODS[method].write(WEIGHT)
    folder = folder_of(tmp_path / "c", layer("a", written.stored), METHODS[method].config)
    with PlainTensors(folder, "it") as opened:
        target = torch.empty(160, 192, dtype=torch.bfloat16)
        opened.copy_into([(target, "a.weight")])
    assert torch.equal(target, written.weight.bfloat16())


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_gpu_makes_the_same_weight(tmp_path: Path, method) -> None:
    written = method.write(WEIGHT)
    folder = folder_of(tmp_path / "c", layer("a", written.stored), method.config)
    exact = torch.empty(160, 192, device="cuda")
    served = torch.full((170, 192), 7.0, device="cuda", dtype=torch.bfloat16)
    with PlainTensors(folder, "it") as opened:
        opened.copy_into([(exact, "a.weight"), (served[5:165], "a.weight")])
    assert torch.equal(exact.cpu(), written.weight)
    assert torch.equal(served[5:165].cpu(), written.weight.bfloat16())
    assert bool((served[:5] == 7).all())


# -- packings, spelt by hand -----------------------------------------------------------------------
def test_awq_puts_even_features_into_the_low_half_of_a_word(tmp_path: Path) -> None:
    values = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [15, 0, 14, 1, 13, 2, 12, 3]])
    words = torch.tensor([[0x86427531 - 2**32], [0x3210CDEF]], dtype=torch.int32)
    assert torch.equal(awq_words(values), words)
    zeros = torch.tensor([[0x75316420]], dtype=torch.int32)  # 0 to 7
    scales = torch.tensor([[0.5, 1, 2, 0.5, 1, 2, 0.5, 1]], dtype=torch.float16)
    stored = {"a.qweight": words, "a.qzeros": zeros, "a.scales": scales}
    wanted = torch.tensor(
        [[0.5, 1, 2, 0.5, 1, 2, 0.5, 1], [7.5, -1, 24, -1, 9, -6, 3, -4]], dtype=torch.float32
    ).t()  # (value - zero point) * scale
    with PlainTensors(folder_of(tmp_path / "c", stored, {"quant_method": "awq"}), "it") as opened:
        assert torch.equal(opened.read("a.weight"), wanted)


def test_gptq_packs_inputs_low_bits_first_and_zero_points_less_one(tmp_path: Path) -> None:
    values = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])  # one output feature
    assert words_in_order(values, 4).item() == 0x87654321 - 2**32
    assert words_in_order(torch.tensor([[1, 2, 3, 255]]), 8).item() == 0xFF030201 - 2**32
    words = torch.full((1, 8), 0x87654321 - 2**32, dtype=torch.int32)
    stored = {
        "a.qweight": words,
        "a.qzeros": torch.tensor([[0x76543210], [0x00000007]], dtype=torch.int32),
        "a.scales": torch.tensor([[1.0] * 8, [2.0] * 8], dtype=torch.float16),
        "a.g_idx": torch.tensor([0, 1, 0, 0, 1, 0, 0, 0], dtype=torch.int32),
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": 4, "desc_act": True}
    with PlainTensors(folder_of(tmp_path / "c", stored, config), "it") as opened:
        found = opened.read("a.weight")
    # zero points of group 0 are 1 to 8, of group 1 eight and then ones
    assert found[0].tolist() == [0, 2 * (2 - 8), 2, 3, 2 * (5 - 8), 5, 6, 7]
    assert found[7].tolist() == [-7, 2 * (2 - 1), -5, -4, 2 * (5 - 1), -2, -1, 0]
    second = config | {"checkpoint_format": "gptq_v2"}
    with PlainTensors(folder_of(tmp_path / "d", stored, second), "it") as opened:
        assert opened.read("a.weight")[0].tolist() == [1, 2 * (2 - 7), 3, 4, 2 * (5 - 7), 6, 7, 8]


@pytest.mark.parametrize("case", ["nf4", "fp4", "ragged", "nested", "int8"])
def test_what_bitsandbytes_wrote_is_what_it_makes_of_it(tmp_path: Path, case: str) -> None:
    golden = load_file(GOLDEN)
    found = {n.removeprefix(f"{case}."): t for n, t in golden.items() if n.startswith(f"{case}.")}
    original, back = found.pop("original"), found.pop("dequantised")
    with PlainTensors(folder_of(tmp_path / "c", layer("a", found)), "it") as opened:
        assert torch.equal(opened.read("a.weight"), back)
    # and the writer of the other tests writes these bytes, but for signs of zero and close calls
    four = in_four_bits("fp4" if case == "fp4" else "nf4", nested=case == "nested")
    written = in_eight_bits(original) if case == "int8" else four.write(original)
    for leaf, tensor in found.items():
        if "quant_state" in leaf:
            states = [json.loads(bytes(t.tolist())) for t in (tensor, written.stored[leaf])]
            offsets = [state.pop("nested_offset", 0) for state in states]
            assert states[0] == states[1]
            assert offsets[0] == pytest.approx(offsets[1], rel=1e-6)
        else:
            differing = (tensor != written.stored[leaf]).float().mean()
            assert differing <= (0.005 if case in ("fp4", "nested") else 0), leaf
    assert (written.weight != back).float().mean() <= 0.005


# -- ragged and odd layouts ------------------------------------------------------------------------
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 130), (300, 128), (129, 257)])
def test_blocks_at_the_edges_are_cut(tmp_path: Path, rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(4))
    written = fp8_in_blocks(weight)
    config = METHODS["fp8 in blocks of 128"].config
    with PlainTensors(folder_of(tmp_path / "c", layer("a", written.stored), config), "it") as it:
        assert torch.equal(it.read("a.weight"), written.weight)
    with PlainTensors(folder_of(tmp_path / "d", layer("a", written.stored)), "it") as unnamed:
        assert torch.equal(unnamed.read("a.weight"), written.weight)


def test_scales_may_be_powers_of_two(tmp_path: Path) -> None:
    written = fp8_in_blocks(WEIGHT)
    powers = torch.tensor([[1.0, 0.5], [2.0, 0.25]])
    stored = {"a.weight": written.stored["weight"]}
    stored["a.weight_scale_inv"] = powers.to(torch.float8_e8m0fnu)
    wide = powers.repeat_interleave(128, 0).repeat_interleave(128, 1)[:160, :192]
    with PlainTensors(folder_of(tmp_path / "c", stored), "it") as opened:
        assert torch.equal(opened.read("a.weight"), stored["a.weight"].float() * wide)


def test_columns_that_no_group_size_divides_are_gptqs_last_group(tmp_path: Path) -> None:
    method = gptq(4, 48)
    written = method.write(WEIGHT[:, :160])
    written.stored.pop("g_idx")
    folder = folder_of(tmp_path / "c", layer("a", written.stored), method.config)
    with PlainTensors(folder, "it") as opened:
        assert torch.equal(opened.read("a.weight"), written.weight)


def test_single_layers_of_gptq_may_have_other_bits(tmp_path: Path) -> None:
    """`dynamic` of GPTQModel's config; the length of `g_idx` tells."""
    written = gptq(8, 64).write(WEIGHT)
    folder = folder_of(tmp_path / "c", layer("a", written.stored), gptq(4, 64).config)
    with PlainTensors(folder, "it") as opened:
        assert torch.equal(opened.read("a.weight"), written.weight)


def test_compressed_tensors_with_reordered_columns(tmp_path: Path) -> None:
    """`actorder: group`, which the library wrote until 2026: `g_idx` has each column's group."""
    method = METHODS["packed int4 in groups"]
    order = torch.randperm(192, generator=torch.Generator().manual_seed(2))
    written = method.write(WEIGHT[:, order])  # columns of one group beside each other
    stored = dict(written.stored)
    groups = torch.empty(192, dtype=torch.int32)
    groups[order] = (torch.arange(192) // 32).int()
    from compressed_tensors.compressors.pack_quantized.helpers import (
        pack_to_int32,
        unpack_from_int32,
    )

    values = unpack_from_int32(stored["weight_packed"], 4, WEIGHT.shape)
    original, wanted = torch.empty_like(values), torch.empty_like(WEIGHT)
    original[:, order], wanted[:, order] = values, written.weight
    stored |= {"weight_packed": pack_to_int32(original, 4), "weight_g_idx": groups}
    with PlainTensors(folder_of(tmp_path / "c", layer("a", stored), method.config), "it") as it:
        assert torch.equal(it.read("a.weight"), wanted)
    stored["weight_g_idx"] = torch.full((192,), -1, dtype=torch.int32)  # never filled: in order
    with PlainTensors(folder_of(tmp_path / "d", layer("a", stored), method.config), "it") as it:
        assert (it.read("a.weight") == wanted).float().mean() < 0.5


def test_bytes_may_be_stored_as_another_type(tmp_path: Path) -> None:
    """`bnb_4bit_quant_storage: bfloat16`."""
    method = METHODS["nf4"]
    written = method.write(WEIGHT)
    stored = dict(written.stored)
    stored["weight"] = stored["weight"].view(-1).view(torch.bfloat16)[:, None]
    with PlainTensors(folder_of(tmp_path / "c", layer("a", stored), method.config), "it") as it:
        assert torch.equal(it.read("a.weight"), written.weight)


def test_comfys_markers_are_read(tmp_path: Path) -> None:
    written = comfy(WEIGHT)
    marked = layer("a", written.stored) | {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    with PlainTensors(folder_of(tmp_path / "c", marked), "it") as opened:
        assert list(opened) == ["a.weight"]
    newer = {
        "weight": written.stored["weight"],
        "weight_scale": written.stored["scale_weight"],
        "comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8),
    }
    with PlainTensors(folder_of(tmp_path / "d", layer("a", newer)), "it") as opened:
        assert torch.equal(opened.read("a.weight"), written.weight)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_component_that_was_cast_as_a_whole_is_served(tmp_path: Path, kind: torch.dtype) -> None:
    """Without scales anywhere, biases and norms cast, too: nothing was divided by a scale."""
    stored = {n: t.to(kind) for n, t in (PLAIN | {"a.weight": WEIGHT}).items()}
    with PlainTensors(folder_of(tmp_path / "c", stored), "it") as opened:
        target = torch.empty(160, 192)
        opened.copy_into([(target, "a.weight")])
        assert opened.quantised.method == "float8 casts without scales"
        assert {h.dtype for h in opened.headers().values()} == {"F32"}
    assert torch.equal(target, WEIGHT.to(kind).float())
