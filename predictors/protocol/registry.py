"""`Registry`: the served models, their readiness, and the requests in flight.

Every edge calls `find` for the model, and `begin_request` and `end_request` around its work. A
shutdown has two steps: a leaving server is not ready any more but still accepts requests; a
draining one finishes what it has accepted and refuses new requests with `Draining`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from predictors import metrics
from predictors.errors import (
    Draining,
    Forbidden,
    InvalidRequest,
    NotFound,
    NotReady,
    NotSupported,
)
from predictors.protocol.bytes_in_flight import BytesInFlight, Charge
from predictors.protocol.call import AdapterAccess, Call
from predictors.protocol.callers import Callers
from predictors.protocol.grpc.arriving import ArrivingMessages
from predictors.protocol.heap_trims import HeapTrims
from predictors.protocol.names import MAX_NAME, check_name, check_names, read_aliases
from predictors.protocol.outcomes import UNKNOWN_MODEL
from predictors.protocol.overload import OverloadGate
from predictors.protocol.pending_bodies import PendingBodies
from predictors.protocol.refusal_pace import RefusalPace
from predictors.protocol.serves import (
    Prepares,
    Queued,
    Served,
    ServesAdapters,
    Startable,
)
from predictors.protocol.tasks import make_workers
from predictors.protocol.v2.values import VERSION
from predictors.settings import Settings
from predictors.workers.pool import Workers
from predictors.workers.process import trim

MAX_SHOWN = 64  # characters of an unknown name that an error repeats
MAX_READY_LAG_S = 15.0  # a kubelet's probe of the data port would have failed three times
PARSE_THREADS = 2  # more would wait for the interpreter's lock

T = TypeVar("T")


class Registry:
    """The served models by name, and what their requests share: worker processes, threads and the
    limit of bytes in flight. Event loop only, but for health, which any thread may read."""

    def __init__(
        self, models: Sequence[Served], settings: Settings, workers: Workers | None = None
    ) -> None:
        self.settings = settings
        self.workers = workers or make_workers(settings.server)
        self.bytes_in_flight = BytesInFlight(
            settings.server.max_bytes_in_flight, metrics.request_bytes_in_flight.set
        )
        self.overload = OverloadGate(settings.overload)
        self.loop_overdue_s: Callable[[], float] = lambda: 0.0
        """Seconds since the event loop of the data port should have run; set by the server."""
        self.callers = Callers(settings.access)
        self.pending_bodies = PendingBodies()
        self.arriving = ArrivingMessages(settings.server.max_arriving_messages)
        self.refusal_pace = RefusalPace(settings.queue.refusals_per_s)
        self._threads = ThreadPoolExecutor(PARSE_THREADS, thread_name_prefix="parse")
        self._trims = HeapTrims(self._start_trim)
        self._models: dict[str, Served] = {}
        self.startable: list[Startable] = []
        self._room_checks: dict[str, Callable[[Call], None]] = {}
        self._adapted: dict[str, ServesAdapters] = {}
        self._aliases = read_aliases(settings.server.aliases)
        for model in models:
            self.add(model)
        self._withdrawn: set[str] = set()
        self.leaving = asyncio.Event()
        """Set once the process is about to end, so that callers should go elsewhere."""
        self._draining = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    # -- models ------------------------------------------------------------------------------------
    @property
    def models(self) -> Mapping[str, Served]:
        """All models, ready or not, in the order of the command line."""
        return self._models

    def add(self, model: Served) -> None:
        """Serve one more model. Raises `InvalidRequest` for a name that is taken or not allowed."""
        if self._models.get(model.name, model) is not model:
            raise InvalidRequest(f"the model name {model.name!r} is given twice")
        check_name(model.name)
        self._models[model.name] = model
        # isinstance with a Protocol is slow, so it is not repeated for each request
        if isinstance(model, Startable) and model not in self.startable:
            self.startable.append(model)
        if isinstance(model, Queued):
            self._room_checks[model.name] = model.check_room
        if isinstance(model, ServesAdapters):
            self._adapted[model.name] = model

    def check_aliases(self) -> None:
        """Raise `InvalidRequest` for an alias that is a model's name or names no model."""
        check_names(self._models, self._aliases)

    @property
    def names(self) -> Mapping[str, Served]:
        """The models by every name that a request may use: their own, the aliases, and those with
        an adapter."""
        found = {**self._models}
        found |= {alias: self._models[name] for alias, name in self._aliases.items()}
        for name, model in self._adapted.items():
            for adapter in model.adapter_names:
                found.setdefault(f"{name}:{adapter}", self._models[name])
        return found

    def models_for(self, call: Call | None) -> Collection[Served]:
        """The models that this caller may use under any name."""
        if call is None or not call.models:
            return self._models.values()
        found = [
            self._models.get(self._aliases.get(name, name)) or self._adapted_model(name)
            for name in call.models
        ]
        return {each.name: each for each in found if each is not None}.values()

    def _adapted_model(self, name: str) -> Served | None:
        """The model of `MODEL:ADAPTER`, if there is this adapter."""
        base, _, adapter = name.rpartition(":")
        own = self._aliases.get(base, base)
        adapted = self._adapted.get(own)
        has_it = adapted is not None and adapter in adapted.adapter_names
        return self._models[own] if has_it else None

    def names_for(self, call: Call | None) -> Mapping[str, Served]:
        """The names that this caller may use."""
        if call is None or not call.models:
            return self.names
        open_to = {name: self._adapters_for(model, call) for name, model in self._models.items()}
        found = {}
        for name, model in self.names.items():
            allowed = open_to[model.name]
            if allowed is None or self.adapter_of(name) in allowed:
                found[name] = model
        return found

    def _adapters_for(self, model: Served, call: Call) -> frozenset[str] | None:
        """The adapters of `model` that a key with a list of models may use; None for all, and for
        the model without any."""
        allowed = set()
        for name in call.models:
            if self._aliases.get(name, name) == model.name:
                return None
            base, _, adapter = name.rpartition(":")
            if self._aliases.get(base, base) == model.name and not self._is_whole(name):
                allowed.add(adapter)
        return frozenset(allowed)

    def _is_whole(self, name: str) -> bool:
        return name in self._models or name in self._aliases

    def adapter_of(self, name: str) -> str:
        """The adapter in the name of a model; empty for a model's own name and an alias."""
        return "" if self._is_whole(name) else name.rpartition(":")[2]

    def find(self, name: str, version: str = "", *, call: Call | None = None) -> Served:
        """The model, ready or not; raises `NotFound` for an unknown name or version, and
        `Forbidden` for a model that the caller of `call` may not use.

        The adapter of a name such as `flux:watercolour`, and those that the caller may use, are in
        `call.adapters` from then on.
        """
        model, adapter = self._models.get(self._aliases.get(name, name)), ""
        if model is None:
            model, adapter = self._find_adapted(name, call)
        allowed = None
        if call is not None and call.models:
            allowed = self._adapters_for(model, call)
            if allowed is not None and adapter not in allowed:
                raise Forbidden(f"the API key may not use model {name[:MAX_NAME]!r}")
        if call is not None and (adapter or allowed is not None):
            call.adapters = AdapterAccess(adapter, allowed)
        if version not in {"", VERSION}:
            shown = version[:MAX_SHOWN]
            raise NotFound(f"model {name!r} has no version {shown!r}; there is version {VERSION!r}")
        return model

    def _find_adapted(self, name: str, call: Call | None) -> tuple[Served, str]:
        """The model and the adapter of `MODEL:ADAPTER`. Raises as `find`."""
        base, _, adapter = name.rpartition(":")
        own = self._aliases.get(base, base)
        adapted = self._adapted.get(own)
        tells = self.callers.keys is None or (call is not None and call.usage is not None)
        if adapted is None:
            message = f"there is no model {name[:MAX_SHOWN]!r}"
            known = list(self.names_for(call))
        else:
            model = self._models[own]
            if adapter in adapted.adapter_names:
                return model, adapter
            allowed = self._adapters_for(model, call) if call is not None and call.models else None
            if allowed is not None and not allowed:
                raise Forbidden(f"the API key may not use model {base[:MAX_SHOWN]!r}")
            message = f"model {base[:MAX_SHOWN]!r} has no adapter {adapter[:MAX_SHOWN]!r}"
            known = [each for each in adapted.adapter_names if allowed is None or each in allowed]
        # a probe without a key learns no names
        raise NotFound(f"{message}; served: {', '.join(known) or 'none'}" if tells else message)

    def label(self, name: str) -> str:
        """The metric label of a name from a request: the served model's own name."""
        own = self._aliases.get(name, name)
        if own in self._models:
            return own
        base = name.rpartition(":")[0]
        own = self._aliases.get(base, base)
        return own if own in self._adapted else UNKNOWN_MODEL

    # -- health ------------------------------------------------------------------------------------
    @property
    def is_draining(self) -> bool:
        return self._draining

    async def is_ready(self, name: str) -> bool:
        """True while the model is warm, alive and not withdrawn, and the server is not leaving and
        has memory for requests. `name` is the model's own, no alias."""
        is_out = self.leaving.is_set() or name in self._withdrawn
        if is_out or self.loop_overdue_s() > MAX_READY_LAG_S:
            return False
        is_up = await self._models[name].healthy()
        return is_up and await self.overload.at_rest.fits(self._models.values())

    async def all_ready(self) -> bool:
        return bool(self._models) and all([await self.is_ready(name) for name in self._models])

    def is_live(self) -> bool:
        """False once an engine, a thread or process that prepares for it, or the event loop is dead
        or stalled. Loading counts as alive."""
        if self.loop_overdue_s() > self.settings.queue.stall_timeout_s:
            return False
        return self.workers.is_alive and all(model.is_alive for model in self.startable)

    @property
    def backlog(self) -> int:
        """Items that wait for a thread or a process to parse or prepare them."""
        waiting = self.workers.waiting + self._threads._work_queue.qsize()
        prepares = (model for model in self._models.values() if isinstance(model, Prepares))
        return waiting + sum(model.backlog for model in prepares)

    # -- requests ----------------------------------------------------------------------------------
    def check_room(self, model: Served, call: Call) -> None:
        """Raise what the model's queue would refuse a request of one row with, before its body is
        read: under overload most requests are refused, and reading them takes time from others."""
        if (check := self._room_checks.get(model.name)) is not None:
            check(call)

    def begin_request(self, name: str) -> None:
        """Count one more request in flight for the model of this name, which is no alias;
        `end_request` must follow once it is answered.

        Raises `Draining` or `NotReady` when no requests are accepted.
        """
        if self._draining:
            raise Draining("the server is shutting down; ask another replica")
        if name in self._withdrawn:
            raise NotReady(f"model {name!r} is unloaded")
        self._in_flight += 1
        metrics.requests_in_flight.set(self._in_flight)
        self._idle.clear()

    def end_request(self) -> None:
        """Count one request less, after its last byte was handed to the socket."""
        self._in_flight -= 1
        metrics.requests_in_flight.set(self._in_flight)
        if self._in_flight == 0:
            self._idle.set()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight; False if that took longer than `timeout_s`."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work`, which takes milliseconds, on one of a few threads."""
        run = copy_context().run
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, run, work, *arguments
        )

    def release_bytes(self, charge: Charge) -> None:
        """End an answered request's charge. Some time later the C heap is trimmed."""
        self._trims.answered(charge.num_bytes)
        charge.close()

    def close(self) -> None:
        self._trims.close()
        self._threads.shutdown(wait=False)

    def _start_trim(self) -> None:
        asyncio.get_running_loop().run_in_executor(self._threads, trim)

    def closes_connections(self) -> bool:
        """True while each response closes its connection, since the process is about to end or is
        near a limit."""
        return self.leaving.is_set() or self.overload.closes

    # -- shutdown ----------------------------------------------------------------------------------
    def start_leaving(self) -> None:
        """Report not ready from now on, for good, but still accept requests."""
        self.leaving.set()
        metrics.draining.set(1)

    def drain(self) -> None:
        """Refuse new requests from now on, for good, those whose bodies still arrive among them."""
        self.start_leaving()
        self._draining = True
        for pending in (self.arriving, *self.pending_bodies):
            pending.stop_reading(Draining("the server is shutting down; ask another replica"))

    def withdraw(self, name: str) -> None:
        """Unload: the model finishes what it has accepted, and keeps its weights."""
        self._withdrawn.add(self._find_whole(name).name)

    def restore(self, name: str) -> None:
        self._withdrawn.discard(self._find_whole(name).name)

    def _find_whole(self, name: str) -> Served:
        """The model of a name without an adapter. Raises `NotSupported` for one with an adapter."""
        model = self.find(name)
        if adapter := self.adapter_of(name):
            raise NotSupported(
                f"{name[:MAX_SHOWN]!r} is an adapter of {model.name!r}: the operator adds and "
                f"removes it on the admin port (/admin/loras/{adapter})"
            )
        return model
