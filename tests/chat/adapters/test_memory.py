"""The device memory of adapters' tables, as `check` counts it and as an engine takes it."""

from __future__ import annotations

from dataclasses import replace

from predictors.chat.memory import MIXED_GRAPH_BYTES, ChatWeights, chat_options
from predictors.chat.tensors import decoder_tensors, linear_sides
from predictors.compute.checkpoint.summary import CardFacts
from predictors.models.qwen2_5_vl.folder import decoder_sizes, linears, read_folder
from predictors.settings import QwenVLSettings
from tests.chat.adapters.conftest import TABLES, Adapted
from tests.chat.room import CHECKPOINT

RAW, TEXT, _ = read_folder(CHECKPOINT)
SIZES = decoder_sizes(RAW, TEXT)
ADAPTABLE = sum(sum(linear_sides(shape)) for shape in linears(RAW).values())
WEIGHTS = ChatWeights(10**6, 10**6, SIZES, 128, 14, ADAPTABLE)
CARD = CardFacts(memory_bytes=80 * 2**30)
ON = QwenVLSettings(**TABLES)


def test_the_tables_and_a_second_set_of_graphs_are_counted_where_there_are_any() -> None:
    off, on = (chat_options(WEIGHTS, each, "bfloat16", CARD)[0] for each in (QwenVLSettings(), ON))
    assert "adapters" not in off.num_bytes
    rows = TABLES["lora_max_active"] * TABLES["lora_max_rank"]
    assert on.num_bytes["adapters"] == 2 * rows * ADAPTABLE
    mixed = MIXED_GRAPH_BYTES  # rows with adapters have none
    assert on.num_bytes["graphs"] - mixed == 2 * (off.num_bytes["graphs"] - mixed)
    twice = replace(ON, lora_max_rank=2 * ON.lora_max_rank)
    (more, _) = chat_options(WEIGHTS, twice, "bfloat16", CARD)
    assert more.num_bytes["adapters"] == 2 * on.num_bytes["adapters"]


def test_an_engine_takes_what_was_counted_but_for_padding(adapters: Adapted) -> None:
    tables = adapters.room.runner._tables
    assert tables is not None
    taken = sum(t.down.nbytes + t.up.nbytes for t in tables._tables.values())
    (option, _) = chat_options(WEIGHTS, ON, "float32", CARD)
    assert option.num_bytes["adapters"] <= taken <= 1.1 * option.num_bytes["adapters"]


def test_every_linear_of_a_block_counts_and_norms_do_not() -> None:
    names = {name.removesuffix(".weight") for name in decoder_tensors(SIZES)} & set(linears(RAW))
    assert len(names) == 7 * SIZES.layers
