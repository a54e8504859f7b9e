"""Which models are served, whether they may be asked now, and how many requests are in flight.
Knows no wire format.

Every edge asks here first: `find` for the model, `enter` and `leave` around the work. The end has
two steps: a server that is leaving is ready for nobody but takes who still comes; one that is
draining finishes what is inside and refuses whatever comes later with `Draining`. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Protocol, TypeVar

from predictors import metrics
from predictors.errors import Draining, NotFound, NotReady, ServingError
from predictors.protocol.faults import UNKNOWN_MODEL
from predictors.protocol.http.bodies import BytesInFlight, Charge
from predictors.protocol.serves import Served
from predictors.protocol.tasks import make_workers
from predictors.settings import Settings
from predictors.workers.pool import Workers
from predictors.workers.process import trim

VERSION = "1"  # the one version of every model
MAX_SHOWN = 64  # characters of a caller's own name that an error repeats
TRIM_BYTES = 2**20  # of a request after which the C heap is trimmed
TRIM_AFTER_S = 1.0
PARSE_THREADS = 2  # beside the interpreter's lock more would not help

T = TypeVar("T")


class Reading(Protocol):
    """A request whose body is still arriving."""

    def stop_reading(self, reason: ServingError) -> None:
        """Give it up."""
        ...


class Registry:
    """The served models by name, and what their requests share: worker processes and the bound on
    bytes in flight."""

    def __init__(
        self, models: Sequence[Served], settings: Settings, workers: Workers | None = None
    ) -> None:
        self.settings = settings
        self.workers = workers or make_workers(settings.server)
        self.bytes_in_flight = BytesInFlight(
            settings.server.max_bytes_in_flight, metrics.request_bytes_in_flight.set
        )
        self.readers: set[Reading] = set()
        self._threads = ThreadPoolExecutor(PARSE_THREADS, thread_name_prefix="parse")
        self._trim: asyncio.TimerHandle | None = None
        self._models: dict[str, Served] = {model.name: model for model in models}
        self._withdrawn: set[str] = set()
        self._leaving = False
        self._draining = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    # -- who is served ---------------------------------------------------------------------------
    @property
    def models(self) -> Mapping[str, Served]:
        """All models, ready or not, in the order of the command line."""
        return self._models

    def add(self, model: Served) -> None:
        """Serve one more model."""
        self._models[model.name] = model

    def find(self, name: str, version: str = "") -> Served:
        """The model, ready or not; raises `NotFound` for an unknown name or version."""
        model = self._models.get(name)
        if model is None:
            served = ", ".join(self._models) or "none"
            raise NotFound(f"there is no model {name[:MAX_SHOWN]!r}; served: {served}")
        if version not in {"", VERSION}:
            shown = version[:MAX_SHOWN]
            raise NotFound(f"model {name!r} has no version {shown!r}; there is version {VERSION!r}")
        return model

    def label(self, name: str) -> str:
        """The metric label of a name that a caller gave: bounded, whatever callers send."""
        return name if name in self._models else UNKNOWN_MODEL

    # -- health ----------------------------------------------------------------------------------
    @property
    def is_leaving(self) -> bool:
        """Whether the process is about to end: nobody should come any more."""
        return self._leaving

    @property
    def is_draining(self) -> bool:
        """Whether the process is shutting down: whoever comes is refused."""
        return self._draining

    async def is_ready(self, name: str) -> bool:
        """Whether to ask this model: warm, alive, not withdrawn, not leaving or draining."""
        if self._leaving or name in self._withdrawn:
            return False
        return await self._models[name].healthy()

    async def all_ready(self) -> bool:
        """Whether there are models and every one of them is ready."""
        return bool(self._models) and all([await self.is_ready(name) for name in self._models])

    def is_live(self) -> bool:
        """Whether every engine, and what prepares for it, is alive: neither dead nor stalled.
        Loading counts as alive."""
        if not self.workers.is_alive:
            return False
        return all(getattr(model, "is_alive", True) for model in self._models.values())

    # -- work ------------------------------------------------------------------------------------
    def enter(self, name: str) -> None:
        """One request for work begins; `leave` must follow once it is answered.

        Raises `Draining` or `NotReady` when no work is taken.
        """
        if self._draining:
            raise Draining("the server is shutting down; ask another replica")
        if name in self._withdrawn:
            raise NotReady(f"model {name!r} is unloaded")
        self._in_flight += 1
        metrics.requests_in_flight.set(self._in_flight)
        self._idle.clear()

    def leave(self) -> None:
        """A request that had entered is answered, its last byte handed to the socket."""
        self._in_flight -= 1
        metrics.requests_in_flight.set(self._in_flight)
        if self._in_flight == 0:
            self._idle.set()

    @property
    def in_flight(self) -> int:
        """Requests that were admitted and are not answered yet."""
        return self._in_flight

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight; False if that took longer than `timeout_s`."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do `work`, which takes milliseconds, off the event loop, on one of a few threads."""
        run = copy_context().run
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, run, work, *arguments
        )

    def end_of(self, charge: Charge) -> None:
        """A request was answered: its bytes count no longer, and many are given back to the system
        once nothing has been for a moment."""
        if charge.num_bytes > TRIM_BYTES and self._trim is None:
            self._trim = asyncio.get_running_loop().call_later(TRIM_AFTER_S, self._start_trim)
        charge.close()

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False)

    def _start_trim(self) -> None:
        self._trim = None
        asyncio.get_running_loop().run_in_executor(self._threads, trim)

    # -- life ------------------------------------------------------------------------------------
    def retire(self) -> None:
        """Be ready for nobody from now on, for good, but take who comes."""
        self._leaving = True
        metrics.draining.set(1)

    def drain(self) -> None:
        """Refuse new work from now on, for good; a body that is not whole is not waited for."""
        self.retire()
        self._draining = True
        for reader in list(self.readers):
            reader.stop_reading(Draining("the server is shutting down; ask another replica"))

    def withdraw(self, name: str) -> None:
        """Take a model out of service (`unload`); what it has accepted is finished, its weights
        stay.
        """
        self.find(name)
        self._withdrawn.add(name)

    def restore(self, name: str) -> None:
        """Put a model back into service (`load`)."""
        self.find(name)
        self._withdrawn.discard(name)
