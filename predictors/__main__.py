"""Composition root and command line: settings, one predictor per model, one server. Knows nothing
of requests.

Which predictor serves a folder is read from the checkpoint: `model_index.json` names a pipeline
class, `config.json` an architecture, and one mapping below leads from there to a room.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictors import metrics
from predictors.cli.arguments import PROMPT, named_path, named_value, new_file, parse, read_file
from predictors.cluster.account import find_account
from predictors.cluster.story import Story, telling
from predictors.compute.checkpoint.folder import advice
from predictors.errors import InvalidRequest, ServingError
from predictors.observe import logs, tracing
from predictors.serving.lifecycle import State
from predictors.settings import InvalidSetting, Settings, from_env

if TYPE_CHECKING:
    from predictors.base import BasePredictor
    from predictors.serving.lifecycle import Warmth
    from predictors.workers.pool import Workers

log = logging.getLogger("predictors")

ROOMS = {
    "FluxPipeline": "predictors.diffusion.predictor:FluxPredictor",
    "Qwen2_5_VLForConditionalGeneration": "predictors.models.qwen2_5_vl.model:make_predictor",
}


# A thread that comes back from the device waits this long for a busy event loop to let go of the
# interpreter. Python's 5 ms are two decode steps.
SWITCH_INTERVAL_S = 0.0005


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    verbs = {"serve": serve, "warm": warm, "profile": profile, "demo": demo, "quantize": quantize}
    arguments = parse(argv, verbs)
    try:
        return int(arguments.run(arguments))
    except ServingError as error:
        if logs.is_json():
            log.critical(error.message)
        else:
            sys.stderr.write(f"error: {error.message}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130  # as a shell says it


def serve(arguments: argparse.Namespace) -> int:
    """Serve every `--model NAME=PATH` until a signal; ready once all of them are warm."""
    settings = _settings(arguments)
    account = find_account(settings.cluster, os.environ)
    # before torch is imported: its idle threads may spin for microseconds, not milliseconds, as
    # engines, loop and pool share the cores. Costs nothing alone, saves a factor of ten in company
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    _begin_log(settings)
    from predictors.compute.device.placement import keep_code
    from predictors.compute.profiling.profiler import Profiler
    from predictors.compute.watch.gpu_watch import watching
    from predictors.protocol.http.connection_limits import raise_file_limit
    from predictors.protocol.server import PredictorServer  # imports KServe: a second
    from predictors.protocol.tasks import make_workers

    raise_file_limit()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_code(settings.compute, os.environ)
    workers = make_workers(settings.server)
    workers.start()  # they import while the models are built
    named = map(named_path, arguments.model)
    models = [build(name, path, settings, workers) for name, path in named]
    logs.adopt()
    os.environ.setdefault("OTEL_SERVICE_NAME", "vision-predictors")
    tracing.configure(os.environ)
    with (
        telling([model.name for model in models], account, settings.cluster) as story,
        watching(settings.compute),
    ):
        for model in models:
            model.host.events.subscribe(
                on_progress=partial(_progressed, model.name, story),
                on_state=partial(_moved, model, story),
                on_warm=spare_the_loaded,
            )
        try:
            return PredictorServer(
                models,
                settings,
                on_drain=story.draining,
                make_profiler=Profiler,
                workers=workers,
            ).run()
        finally:
            workers.close()
            tracing.stop()


def warm(arguments: argparse.Namespace) -> int:
    """Load, compile and warm every `--model NAME=PATH`, keep the compiled code in
    PREDICTORS_COMPUTE_CACHE_DIR, and end. Nothing listens meanwhile."""
    settings = _settings(arguments)
    _begin_log(settings)
    from predictors.compute.compile.compile_cache import keeps_new_code
    from predictors.compute.device.placement import keep_code
    from predictors.operators.offline import warmed

    keep_code(settings.compute, os.environ)
    if settings.compute.cache_dir and not keeps_new_code():
        raise InvalidSetting(
            "PREDICTORS_COMPUTE_CACHE_DIR is a folder that can't be written, or may be by anybody"
        )
    models = [build(name, path, settings) for name, path in map(named_path, arguments.model)]
    logs.adopt()
    for model in models:
        model.host.events.subscribe(on_progress=partial(_progressed, model.name, Story([], None)))
        # on this thread, for all: torch does not survive two that compile one after the other
        warmed(model)
        model.stop()
        sys.stdout.write(f"{model.name} is warm\n")
    return 0


def profile(arguments: argparse.Namespace) -> int:
    """Load and warm one `--model NAME=PATH`, record some steps of its work on what is asked here,
    write the trace for Perfetto, print what took the time, and end. Nothing listens meanwhile."""
    if len(arguments.model) > 1:
        raise InvalidRequest("profile takes one --model")
    settings = _settings(arguments)
    _begin_log(settings)
    from predictors.cli import profile_table
    from predictors.compute.device.placement import keep_code
    from predictors.compute.profiling.profiler import Profiler
    from predictors.operators.admin import read_wish
    from predictors.operators.offline import question, recorded, warmed

    # whatever can be wrong is told before minutes of loading
    name, path = named_path(arguments.model[0])
    steps = read_wish({"model": name, "steps": arguments.steps}).steps
    image = read_file(arguments.image) if arguments.image else None
    parameters = dict(map(named_value, arguments.parameter))
    request = question(name, arguments.prompt or [PROMPT], image, parameters)
    keep_code(settings.compute, os.environ)
    model, profiler = build(name, path, settings), Profiler()
    logs.adopt()
    model.decode_v2(request)
    model.host.events.subscribe(
        on_progress=partial(_progressed, name, Story([], None)), on_warm=spare_the_loaded
    )
    with new_file(arguments.out) as file:
        warmed(model)
        try:
            seconds = recorded(model, request, profiler, steps)
        finally:
            model.stop()
        report = profiler.report()
        file.write(report.trace)
    for line in profile_table.lines(report.table, steps):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"\n{steps} steps in {seconds:.2f} s; trace: {arguments.out}\n")
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """Serve both embedded models, draw PROMPTs over V2, caption them over OpenAI chat, stop."""
    from predictors.cli import demo as client  # imports httpx: serving does not need it

    return client.demo(arguments.prompt or client.PROMPTS, arguments.out)


def quantize(arguments: argparse.Namespace) -> int:
    """Write a copy of a FLUX checkpoint whose transformer is fp8 already."""
    from predictors.models.flux.quantize import quantize_checkpoint  # imports torch: serve need not

    if read_architecture(arguments.source) != "FluxPipeline":
        raise InvalidRequest(f"{arguments.source.name} is no FLUX checkpoint in diffusers layout")
    num_bytes = quantize_checkpoint(arguments.source, arguments.target)
    sys.stdout.write(f"{arguments.target}: {num_bytes / 1e6:,.1f} MB of transformer weights\n")
    return 0


def build(
    name: str, checkpoint: Path, settings: Settings, workers: Workers | None = None
) -> BasePredictor[Any, Any, Any]:
    """The predictor for a checkpoint folder, its pictures decoded by `workers`; raises
    `InvalidRequest` when no room serves it."""
    architecture = read_architecture(checkpoint)
    if architecture not in ROOMS:
        hint = advice(checkpoint)
        raise InvalidRequest(
            f"{checkpoint.name} is a {architecture or 'folder whose config names no class'}; "
            f"served are {', '.join(ROOMS)}{hint and '; '}{hint}"
        )
    module, _, class_name = ROOMS[architecture].partition(":")
    room = getattr(importlib.import_module(module), class_name)
    predictor: BasePredictor[Any, Any, Any] = room(name, checkpoint, settings, workers)
    return predictor


def read_architecture(checkpoint: Path) -> str:
    """The class a checkpoint says it is, or an empty string."""
    for file, key in (("model_index.json", "_class_name"), ("config.json", "architectures")):
        try:
            value = json.loads((checkpoint / file).read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, str):
            return value
    return ""


def spare_the_loaded() -> None:
    """Take what is loaded by now out of the garbage collector's sight, for it is never garbage.

    A full collection visits every object of torch and transformers with the interpreter held: a
    third of a second in which no token leaves and no step is launched. Any thread.
    """
    gc.collect()  # what is garbage already would be kept for ever
    gc.freeze()


def _progressed(model: str, story: Story, progress: Warmth) -> None:
    if progress.shape:
        log.info("warming: %s %s (%d/%d)", model, progress.shape, progress.done, progress.total)
        story.warmed(model, progress.shape, progress.done, progress.total)


def _moved(model: BasePredictor[Any, Any, Any], story: Story, state: State) -> None:
    match state:
        case State.LOADING:
            story.loading(model.name)
        case State.WARMING:
            story.warming(model.name)
        case State.READY:
            story.ready(model.name)
        case State.FAILED:
            story.failed(model.name, model.host.failure.message)


def _begin_log(settings: Settings) -> None:
    own = settings.server
    logs.configure(own.log_format, own.log_level, on_drop=metrics.log_records_dropped_total.inc)


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = from_env(os.environ)
    flags = ("host", "port", "grpc_port", "log_format")
    given = {name: value for name in flags if (value := getattr(arguments, name, None)) is not None}
    return replace(settings, server=replace(settings.server, **given))


if __name__ == "__main__":
    sys.exit(main())
