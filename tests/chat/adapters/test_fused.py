"""Adapters in the passes of a GPU: the kernels run in Triton's interpreter, and are compared with
plain operations in float64 whose weights have the adapters merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from predictors.chat.adapters.adapter import ChatAdapter
from predictors.chat.adapters.changes import DenseChanges, SlotScales, dense_weights
from predictors.chat.adapters.operations import AdaptedOperations
from predictors.chat.adapters.places import LinearPlace, LinearPlaces, decoder_places
from predictors.chat.adapters.tables import AdapterTables
from predictors.chat.decoder.operations import Angles, CachePlaces, PlainOperations
from predictors.chat.decoder.paged import TILE
from predictors.chat.vision.pictures import PictureRunner
from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.compute.device.graphs import Graphs
from predictors.compute.low_rank import LowRank
from predictors.models.qwen2_5_vl.vision.encoder import Encoder
from predictors.models.qwen2_5_vl.vision.tower import VisionTower, vision_places
from tests import triton_interpreter
from tests.chat.adapters.conftest import CPU
from tests.chat.decoder.test_fused import OPTIONS, SHAPE, Rig, assert_near, fused, wide_copy
from tests.chat.vision.test_pictures import SHAPE as TOWER_SHAPE
from tests.chat.vision.test_pictures import patches_of

assert triton_interpreter
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")

SLOTS, RANK = 2, 4
MIXES: tuple[SlotScales, ...] = ((), ((0, 1.0),), ((1, -0.5),), ((0, 0.25), (1, 2.0)))
SUMMARY = AdapterSummary("", "", "PEFT", "", RANK, {}, 0)


def random_adapter(places: LinearPlaces, seed: int) -> ChatAdapter:
    """Of three linears out of four, of rank 3 or 4."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for i, (name, place) in enumerate(places.items()):
        rank, rows, columns = 3 + i % 2, place.sizes.part_features[place.part], _inputs(place)
        down = torch.randn(rank, columns, generator=generator) * columns**-0.5
        up = torch.randn(rows, rank, generator=generator) * 0.3
        if i % 4 != seed % 4:
            changes[name] = LowRank(down, up)
    return ChatAdapter(str(seed), f"{seed:064}", changes, SUMMARY)


def _inputs(place: LinearPlace) -> int:
    return place.sizes.in_features


def tables_of(places: LinearPlaces) -> tuple[AdapterTables, list[ChatAdapter]]:
    tables = AdapterTables(places, SLOTS, RANK, CPU)
    tables.fill_for_warm_up()  # which must not be seen
    adapters = [random_adapter(places, seed) for seed in range(SLOTS)]
    for slot, adapter in enumerate(adapters):
        tables.write(slot, adapter)
    return tables, adapters


def merge(
    places: Mapping[str, LinearPlace], adapters: Sequence[ChatAdapter], mix: SlotScales
) -> None:
    """Add the adapters to the layers themselves."""
    for slot, scale in mix:
        for name, change in adapters[slot].changes.items():
            place = places[name]
            assert isinstance(place.layer, nn.Linear)
            first = sum(place.sizes.part_features[: place.part])
            rows = slice(first, first + len(change.up))
            product = change.up.double() @ change.down.double()
            place.layer.weight[rows] += scale * product.to(place.layer.weight.dtype)


@pytest.fixture(params=[SHAPE, OPTIONS], ids=["bias", "norms"])
def rig(request: pytest.FixtureRequest) -> Rig:
    return Rig.build(request.param)


def exact_of(rig: Rig, adapters: Sequence[ChatAdapter], mix: SlotScales, *given: object) -> Tensor:
    """As `Rig.exact`, with merged weights."""
    x, angles, where = given
    assert isinstance(x, Tensor)
    assert isinstance(angles, Angles)
    wide = wide_copy(rig.decoder)
    merge(decoder_places(wide), adapters, mix)
    caches = [cache.double() for cache in rig.caches]
    turned = Angles(angles.cos.double(), angles.sin.double())
    found: Tensor = wide(x.double(), turned, caches, PlainOperations(where))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("lengths", [[130], [16, 0, 64, 159]])
def test_each_row_of_a_fused_decode_step_has_its_own_adapters(rig: Rig, lengths: list[int]) -> None:
    tables, adapters = tables_of(decoder_places(rig.decoder))
    rows, before = len(lengths), torch.tensor(lengths)
    slots, positions = torch.arange(rows), before // 2
    x = torch.randn(rows, SHAPE.hidden)
    places = torch.stack([rig.places(int(s), n) for s, n in zip(slots, before, strict=True)])
    where = CachePlaces(places, rig.tables[slots], torch.stack((before, before * 0 + 1), 1))
    everywhere = rig.decoder.angles(torch.arange(200).expand(3, -1))
    own = Angles(*(table[positions] for table in everywhere))
    standing = fused.DecodePlaces(slots, before, positions, rig.tables)
    kind = fused.FusedDecodeOne if rows == 1 else fused.FusedDecodeMany
    mixes = MIXES[1:2] if rows == 1 else MIXES
    weights = tables.repeated(dense_weights(tables, mixes))
    adapted = AdaptedOperations(kind(standing, rig.scratch), DenseChanges(tables, weights))
    caches = [cache.clone() for cache in rig.caches]
    found = rig.decoder(x.clone(), everywhere, caches, adapted)
    for row, mix in enumerate(mixes):
        exact = exact_of(rig, adapters, mix, x, own, where)
        assert_near(found[row], exact[row])
    if rows > 1:  # the row without adapters has the bits of a step without
        plain = [cache.clone() for cache in rig.caches]
        bare = rig.decoder(x.clone(), everywhere, plain, kind(standing, rig.scratch))
        assert torch.equal(found[0], bare[0])
        assert (found[1:] - bare[1:]).norm(dim=1).min() > 0.1


def test_prompts_with_other_adapters_share_a_fused_pass(rig: Rig) -> None:
    tables, adapters = tables_of(decoder_places(rig.decoder))
    lengths, rows = (19, 16, 5, 8), 5 * TILE
    places, tiles = torch.zeros(rows, dtype=torch.int64), []
    by_row: list[SlotScales] = [()] * rows
    firsts = []
    for slot, (n, mix) in enumerate(zip(lengths, MIXES, strict=True)):
        first = len(tiles) * TILE
        firsts.append(first)
        places[first : first + n] = rig.places(slot, torch.arange(n))
        by_row[first : first + n] = [mix] * n
        tiles += [(slot, i, min(TILE, n - i)) for i in range(0, n, TILE)]
    x, positions = torch.randn(rows, SHAPE.hidden), torch.randint(0, 150, (3, rows))
    angles = rig.decoder.angles(positions)
    ops = fused.FusedPrompt(
        fused.PromptTiles(places, *torch.tensor(tiles).T.contiguous(), rig.tables)
    )
    weights = tables.repeated(dense_weights(tables, by_row))
    caches = [cache.clone() for cache in rig.caches]
    adapted = AdaptedOperations(ops, DenseChanges(tables, weights))
    found = rig.decoder(x.clone(), angles, caches, adapted)
    for slot, (n, first, mix) in enumerate(zip(lengths, firsts, MIXES, strict=True)):
        part = slice(first, first + n)
        where = CachePlaces(places[part], rig.tables[slot : slot + 1], torch.tensor([[0, n]]))
        own = Angles(*(table[part] for table in angles))
        assert_near(found[part], exact_of(rig, adapters, mix, x[part], own, where))


def test_a_picture_in_a_fused_pass_has_its_own_adapters() -> None:
    torch.manual_seed(2)
    tower = VisionTower(TOWER_SHAPE).requires_grad_(False)
    tables, adapters = tables_of(vision_places(tower))
    graphs = Graphs("test", CPU)
    runner = PictureRunner(
        Encoder(tower, CPU), CPU, graphs, max_pixels=64 * 4, is_fused=True, tables=tables
    )
    for each in runner.warm_shapes():
        each.run()
    graphs.seal()
    bucket, beyond = (6, 8), (6, 12)
    asked = {MIXES[0]: (bucket,), MIXES[3]: (bucket, beyond)}
    found = {
        (grid, mix): runner.encode(patches_of(grid), mix).embedding
        for mix, grids in asked.items()
        for grid in grids
    }
    for mix, grids in asked.items():
        merged = VisionTower(TOWER_SHAPE).requires_grad_(False)
        merged.load_state_dict(tower.state_dict())
        merge(vision_places(merged), adapters, mix)
        exact = PictureRunner(Encoder(merged, CPU), CPU, Graphs("test", CPU))
        for grid in grids:
            wanted = exact.encode(patches_of(grid)).embedding
            torch.testing.assert_close(found[grid, mix], wanted, rtol=1e-4, atol=2e-5)
    assert graphs.count_after_ready == 0
