"""The adapters (LoRA) that requests to one engine may name, and where their values are held.

Changes of linears that run in every step live in device tables, so that pictures with different
adapters share a step. Those of linears that run once per prompt or per picture stay on the host,
pinned, and are uploaded when one is encoded or started.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from predictors.compute.device.placement import Placement, to_device
from predictors.compute.low_rank import (
    AdapterWeights,
    LowRank,
    LowRankTable,
    RankPool,
    check_change,
    on_host,
)
from predictors.diffusion.adapters import (
    PROMPT,
    STEP,
    AdapterPlace,
    AppliedAdapters,
    AppliedChange,
)
from predictors.diffusion.model import (
    AdaptableModel,
    AdaptedPasses,
    DiffusionModel,
    DiffusionPasses,
)
from predictors.diffusion.request import LoraScale
from predictors.errors import Draining, InvalidRequest, NotFound
from predictors.serving.calls import EngineAccess
from predictors.settings import FluxSettings, InvalidSetting

NARROW_RANK = 16  # rank rows of a pass for pictures whose adapters are no larger together


@dataclass(slots=True, eq=False)
class HeldAdapter:
    """One adapter of the registry."""

    name: str
    digest: str
    rank: int
    """Rank rows that it takes."""
    step: Mapping[str, Mapping[int, LowRank]]
    """Changes in every step by linear and part; empty once the tables hold them."""
    outside: tuple[tuple[AdapterPlace, LowRank], ...]
    rows: tuple[int, ...] = ()
    is_ready: bool = False
    is_leaving: bool = False

    @property
    def changes_prompts(self) -> bool:
        return any(place.stage == PROMPT for place, _ in self.outside)


class ActiveAdapters:
    """The adapters that requests of one engine may name. Any thread, unless noted.

    Before the engine is loaded they are only kept; `open` copies them. Without a host the calling
    thread is the engine thread.
    """

    def __init__(
        self,
        places: Mapping[str, AdapterPlace],
        max_active: int,
        max_rank: int,
        placement: Placement,
    ) -> None:
        self._places = places
        self._max_rank = max_rank
        self._placement = placement
        self.num_rows = 1 + max_active * max_rank if max_active else 0
        """Rows of a device table; 0 if adapters are switched off."""
        self._pool = RankPool(max(1, self.num_rows))
        self._tables: Mapping[str, LowRankTable] | None = None
        self._held: dict[str, HeldAdapter] = {}
        self._lock = threading.Lock()
        self._host: EngineAccess | None = None
        self._is_closed = False

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of rank rows that passes have, 0 first; the least that holds a picture's own
        is its, whatever else runs. Powers of two, as kernels want them."""
        if not self.num_rows:
            return (0,)
        widest = max(NARROW_RANK, 1 << (self._max_rank - 1).bit_length())
        return tuple(sorted({0, NARROW_RANK, widest}))

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that requests may name, in order."""
        with self._lock:
            return tuple(sorted(one.name for one in self._held.values() if _is_usable(one)))

    def describe(self) -> dict[str, object]:
        with self._lock:
            held = [one for one in self._held.values() if _is_usable(one)]
        return {
            "ranks": {one.name: one.rank for one in held},
            "rank_rows": self._pool.capacity,
            "rank_rows_free": self._pool.num_free,
        }

    # -- adding and removing ---------------------------------------------------------------------
    def attach(self, host: EngineAccess) -> None:
        self._host = host

    def add(self, weights: AdapterWeights) -> None:
        """Return when requests may name it. Raises `InvalidRequest` for one that does not fit, with
        the tensor or the numbers, for a name that is taken, and for full tables."""
        held = self._placed(weights)
        with self._lock:
            if weights.name in self._held:
                raise InvalidRequest(f"adapter {weights.name} is loaded already; remove it first")
            self._held[weights.name] = held
            if self._tables is None:
                return
        try:
            self._on_engine(lambda: self._write(held))
        except BaseException:
            with self._lock:
                del self._held[weights.name]
            raise

    def remove(self, name: str) -> None:
        """Refuse new requests for it, wait for the jobs that were accepted, and free its rank rows.
        Raises `NotFound`."""
        with self._lock:
            held = self._held.get(name)
            if held is None or held.is_leaving or (self._tables is not None and not held.is_ready):
                raise NotFound(f"no adapter {name} is loaded")
            held.is_leaving = True
        if self._host is not None:
            self._host.wait_until_unused(partial(_uses, name))
        self._on_engine(lambda: self._forget(held))

    def open(self, passes: DiffusionPasses) -> None:
        """Copy what was added into the tables of a loaded model. Engine thread."""
        with self._lock:
            self._tables = passes.tables if isinstance(passes, AdaptedPasses) else {}
            waiting = list(self._held.values())
        for held in waiting:
            self._write(held)

    def close(self) -> None:
        """Forget the tables and the host, and take no more. Engine thread."""
        self._host = None
        self._tables = {}
        self._is_closed = True

    def _on_engine(self, function: Callable[[], None]) -> None:
        if self._is_closed:
            raise Draining("the engine is closed")
        if self._host is None or self._tables is None:
            function()
        else:
            self._host.call(function)

    def _placed(self, weights: AdapterWeights) -> HeldAdapter:
        """`weights` by our linears, checked, in the dtype of the device. The calling thread's work:
        the engine thread only copies."""
        if not self.num_rows:
            raise InvalidRequest(
                "adapters are switched off (flux.lora_max_active is 0): start with the number that "
                "may be active at once"
            )
        device, dtype = self._placement.device, self._placement.dtype
        step: defaultdict[str, dict[int, LowRank]] = defaultdict(dict)
        outside = []
        for path, change in weights.changes.items():
            place = self._place_of(weights.name, path, change)
            own = on_host(change, device, dtype)
            if place.stage == STEP:
                step[place.linear][place.part] = own
            else:
                outside.append((place, own))
        ranks = [change.rank for parts in step.values() for change in parts.values()]
        return HeldAdapter(
            weights.name, weights.digest, max(ranks, default=0), dict(step), tuple(outside)
        )

    def _place_of(self, name: str, path: str, change: LowRank) -> AdapterPlace:
        place = self._places.get(path)
        if place is None:
            raise InvalidRequest(f"adapter {name}: {path} is no linear of this model")
        check_change(f"adapter {name}: {path}", change, place.in_features, place.out_features)
        if change.rank > self._max_rank:
            raise InvalidRequest(
                f"adapter {name}: {path} has rank {change.rank}; flux.lora_max_rank is "
                f"{self._max_rank}"
            )
        return place

    # -- engine thread ---------------------------------------------------------------------------
    def _write(self, held: HeldAdapter) -> None:
        """Copy an adapter into the tables; waits for nothing on the device."""
        rows = self._pool.take(held.name, held.rank)
        try:
            if rows:
                self._copy(held, rows)
        except BaseException:  # `add` forgets the adapter, which has no rows yet
            self._pool.give_back(rows)
            raise
        held.rows, held.step, held.is_ready = rows, {}, True

    def _copy(self, held: HeldAdapter, rows: Sequence[int]) -> None:
        on_device = to_device(torch.tensor(rows), self._placement)
        with torch.inference_mode():
            for linear, table in (self._tables or {}).items():
                table.write(on_device, held.step.get(linear, {}))

    def _forget(self, held: HeldAdapter) -> None:
        self._pool.give_back(held.rows)
        with self._lock:
            del self._held[held.name]

    def applied(self, loras: Sequence[LoraScale]) -> AppliedAdapters:
        """The adapters of a picture that was accepted, also if they are about to leave. Raises
        `InvalidRequest` for one that left before."""
        pairs = self._used(loras, takes_leaving=True)
        rows = tuple(row for held, _ in pairs for row in held.rows)
        changes = [
            AppliedChange(place, weights, scale)
            for held, scale in pairs
            for place, weights in held.outside
        ]
        return AppliedAdapters(
            rows=rows,
            scales=tuple(scale for held, scale in pairs for _ in held.rows),
            width=next(width for width in self.widths if width >= len(rows)),
            prompt=tuple(change for change in changes if change.place.stage == PROMPT),
            picture=tuple(change for change in changes if change.place.stage != PROMPT),
            prompt_key=tuple((held.digest, scale) for held, scale in pairs if held.changes_prompts),
        )

    # -- any thread ------------------------------------------------------------------------------
    def check(self, loras: Sequence[LoraScale]) -> None:
        """Raise `InvalidRequest` for a name that is not loaded, or too many ranks together."""
        self._used(loras)

    def _used(
        self, loras: Sequence[LoraScale], *, takes_leaving: bool = False
    ) -> list[tuple[HeldAdapter, float]]:
        """Each with its scale. The order is that of names, so that a request's is none of its
        picture's bits; scale 0 changes nothing and takes no room."""
        pairs = []
        with self._lock:
            for name, scale in sorted((lora.name, lora.scale) for lora in loras):
                held = self._held.get(name)
                if held is None or not (_is_usable(held) or (takes_leaving and held.is_leaving)):
                    raise InvalidRequest(f"no adapter {name[:64]!r} is loaded", param="loras")
                pairs.append((held, scale))
        pairs = [(held, scale) for held, scale in pairs if scale]
        rank = sum(held.rank for held, _ in pairs)
        if rank > self._max_rank:
            raise InvalidRequest(
                f"the adapters' ranks are {rank} together; at most {self._max_rank} "
                "(flux.lora_max_rank) are applied to one picture",
                param="loras",
            )
        return pairs


def _is_usable(held: HeldAdapter) -> bool:
    return held.is_ready and not held.is_leaving


def _uses(name: str, work: Any) -> bool:
    return any(lora.name == name for lora in work.request.loras)


class AdaptableEngine:
    """The part of an engine that takes adapters while it runs. Any thread."""

    adapters: ActiveAdapters

    def attach(self, host: EngineAccess) -> None:
        """As `Attachable`."""
        self.adapters.attach(host)

    def add_adapter(self, weights: AdapterWeights) -> None:
        """As `ActiveAdapters.add`."""
        self.adapters.add(weights)

    def remove_adapter(self, name: str) -> None:
        """As `ActiveAdapters.remove`."""
        self.adapters.remove(name)


def make_adapters(
    model: DiffusionModel, settings: FluxSettings, placement: Placement
) -> ActiveAdapters:
    """Raises `InvalidSetting` if they are switched on for a model that takes none."""
    most, rank = settings.lora_max_active, settings.adapter_rank
    if not most:
        return ActiveAdapters({}, 0, rank, placement)
    if not isinstance(model, AdaptableModel):
        raise InvalidSetting(f"flux.lora_max_active is {most}, but this model takes no adapters")
    return ActiveAdapters(model.adapter_places(), most, rank, placement)
