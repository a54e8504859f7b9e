"""The verb `serve`: one server process for several models, until a signal or a failed engine.

Imports torch and KServe, so the environment must be complete before this module is imported.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from pathlib import Path

from predictors.cluster.identity import PodIdentity
from predictors.cluster.lifecycle_events import lifecycle_events
from predictors.compute.device.placement import keep_code
from predictors.compute.profiling.profiler import Profiler, silence_kineto
from predictors.compute.watch.gpu_watch import watch_gpu
from predictors.observe import logs, tracing
from predictors.operators.admin import admin_routes
from predictors.operators.garbage import collections_paused, freeze_loaded_objects
from predictors.operators.page_routes import page_routes
from predictors.operators.sharing import share_card
from predictors.operators.starting import (
    Predictor,
    address_of,
    follow_start,
    report_ready,
    report_state,
)
from predictors.protocol.http.connection_limits import raise_file_limit
from predictors.protocol.server import PredictorServer
from predictors.protocol.tasks import make_workers
from predictors.serving.energy import EnergySplit
from predictors.settings import Settings
from predictors.workers.pool import Workers

Build = Callable[[str, Path, Settings, Workers], Predictor]
"""Makes the predictor of a checkpoint: name, folder, settings, and the pool that decodes images."""

# A thread that returns from the device waits this long for a busy event loop to release the
# interpreter. Python's default of 5 ms is two decode steps.
SWITCH_INTERVAL_S = 0.0005
HANG_PATIENCE_S = 1.0  # for threads that are about to end

log = logging.getLogger("predictors")


def serve_models(
    named: Sequence[tuple[str, Path]],
    build: Build,
    settings: Settings,
    identity: PodIdentity | None,
    environ: MutableMapping[str, str],
) -> int:
    """Serve checkpoints by name until a signal; returns the process's exit code."""
    raise_file_limit()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_code(settings.compute, environ)
    silence_kineto(environ)
    workers = make_workers(settings.server)
    workers.start()  # they import while the models are built
    with collections_paused():  # its imports
        models = [build(name, path, settings, workers) for name, path in named]
    share_card(models, settings)
    logs.redirect_library_handlers()
    environ.setdefault("OTEL_SERVICE_NAME", "vision-predictors")
    tracing.configure_tracing(environ)
    with (
        lifecycle_events([model.name for model in models], identity, settings.cluster) as events,
        watch_gpu(settings.compute, EnergySplit([model.host for model in models]).split),
    ):
        secure = bool(settings.tls.cert_file)

        def on_ready() -> None:
            address = address_of(settings.server.host, server.http_port, is_secure=secure)
            report_ready([model.name for model in models], address)

        server = PredictorServer(
            models,
            settings,
            routes=page_routes(settings),
            on_drain=events.draining,
            on_ready=on_ready,
            admin_routes=partial(admin_routes, make_profiler=Profiler),
            workers=workers,
        )
        for model in models:
            follow_start(model, events)
            model.host.events.subscribe(
                on_state=partial(report_state, model, events), on_warm=freeze_loaded_objects
            )
        try:
            exit_code = server.run()
        finally:
            workers.close()
            tracing.stop()
    leave_hanging_threads(models, exit_code)
    return exit_code


def leave_hanging_threads(
    models: Sequence[Predictor], exit_code: int, exit_now: Callable[[int], object] = os._exit
) -> None:
    """End the process now if a thread hangs in a call that does not return: the interpreter would
    wait for it for ever. No-op otherwise."""
    left = [model for model in models if model.host.is_left_behind]
    starting = [model.name for model in left if not model.host.was_ready]
    hanging = [f"{model.name}'s engine" for model in left if model.host.was_ready]
    deadline = time.monotonic() + HANG_PATIENCE_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            hanging += [thread.name] if thread.is_alive() else []
    if hanging:
        log.error("ending now: these threads hang: %s", ", ".join(hanging))
    elif starting:
        log.info("ending now, without the end of the start of %s", ", ".join(starting))
    if left or hanging:
        logging.shutdown()
        exit_now(exit_code)
