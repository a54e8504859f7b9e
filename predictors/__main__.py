"""Composition root and command line: settings, one predictor per model, one function per verb.

The predictor of a folder is chosen by its checkpoint: `model_index.json` names a pipeline class,
`config.json` an architecture, and `MODELS` maps that name to the function that makes a predictor.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take long
    from predictors.cli import program

    program.end_at_interrupts()

import argparse
import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from predictors import metrics
from predictors.activator.command import activator
from predictors.cli import verbs
from predictors.cli.arguments import PROMPT, Verb, new_file, parse, read_file, read_size
from predictors.cli.named_values import named_components, named_loras, named_paths, named_value
from predictors.cli.other_models import instead_of
from predictors.cli.outcomes import print_report, run_verb
from predictors.cluster.identity import find_pod_identity
from predictors.cluster.lifecycle_events import refusal_events
from predictors.compute.checkpoint.folder import check_entries, reading
from predictors.compute.checkpoint.integrity import Verification, verify_folders
from predictors.compute.checkpoint.layout import (
    INDEX,
    advice,
    class_in_config,
    model_type_of,
    resolve_folder,
)
from predictors.compute.checkpoint.summary import CardFacts, FolderSummary
from predictors.environment import from_env
from predictors.errors import InvalidRequest
from predictors.observe import logs
from predictors.operators import given_adapters
from predictors.operators.garbage import collections_paused, freeze_loaded_objects
from predictors.operators.sharing import check_memory_shares
from predictors.operators.user_and_temp import ensure_user_and_temp
from predictors.protocol.certificates import check_certificates
from predictors.protocol.http.access import check_addresses
from predictors.protocol.keys import KeysFile
from predictors.protocol.names import check_names, read_aliases
from predictors.settings import InvalidSetting, Settings

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from predictors.base import BasePredictor
    from predictors.cli.sources import OwnModel
    from predictors.workers.pool import Workers

log = logging.getLogger("predictors")

FLUX_PIPELINES = (
    "FluxPipeline", "FluxFillPipeline", "FluxKontextPipeline", "FluxImg2ImgPipeline",
    "FluxInpaintPipeline", "FluxKontextInpaintPipeline",
)  # fmt: skip
"""diffusers' pipelines of one checkpoint layout; folders name the one that wrote them."""
MODELS = {
    **dict.fromkeys(FLUX_PIPELINES, "predictors.models.flux.predictor:make_predictor"),
    "Qwen2_5_VLForConditionalGeneration": "predictors.models.qwen2_5_vl.model:make_predictor",
    "Qwen3VLForConditionalGeneration": "predictors.models.qwen3_vl.model:make_predictor",
}
"""Architecture -> module and function that makes its predictor, imported when it is needed."""
MODEL_TYPES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
"""By the `model_type` of a config that names no class, as transformers' own loader takes it."""
SUMMARIES = {
    **dict.fromkeys(FLUX_PIPELINES, "predictors.models.flux.summary:summarise"),
    "Qwen2_5_VLForConditionalGeneration": "predictors.models.qwen2_5_vl.summary:summarise",
    "Qwen3VLForConditionalGeneration": "predictors.models.qwen3_vl.summary:summarise",
}
"""Module and function that describe a folder without torch. Beside it is `describe_adapter`."""
NO_COMPONENTS: Mapping[str, Mapping[str, Path]] = MappingProxyType({})
NO_RANKS: Mapping[str, int] = MappingProxyType({})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    logs.open_missing_streams()
    arguments = parse(argv, VERBS, list(MODELS))
    arguments.environ, arguments.open_model, arguments.verbs = os.environ, _open_model, VERBS
    return run_verb(arguments)


# -- verbs: their docstrings are the command line's help, and their imports load torch -------------
def serve(arguments: argparse.Namespace) -> int:
    """Serve every `--model NAME=PATH` until SIGTERM or Ctrl-C; ready once all of them are warm."""
    settings = _read_settings(arguments)
    check_certificates(settings.tls)
    check_addresses(settings)
    if settings.access.keys_file:
        KeysFile(settings.access).read()
    identity = find_pod_identity(settings.cluster, os.environ)
    names = [raw.partition("=")[0] for raw in arguments.model]
    # Before torch is imported: its idle threads then spin for microseconds, not milliseconds. Where
    # engines, event loop and pool share cores, this is a factor of ten; it costs nothing elsewhere.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    with collections_paused(), refusal_events(names, identity, settings.cluster):
        named, make, verification = _read_models(arguments, settings)
        from predictors.operators.serve import serve_models  # files are hashed meanwhile

        verification.finish()
    return serve_models(named, make, settings, identity, os.environ)


def warm(arguments: argparse.Namespace) -> int:
    """Load, compile and warm every `--model NAME=PATH`, keep the compiled code in
    PREDICTORS_COMPUTE_CACHE_DIR, and exit. No port is opened."""
    settings = _read_settings(arguments).with_all_warm()
    named, make, verification = _read_models(arguments, settings)
    from predictors.compute.compile.compile_cache import keeps_new_code
    from predictors.compute.device.placement import keep_code
    from predictors.operators.offline import warm_models

    verification.finish()
    keep_code(settings.compute, os.environ)
    if settings.compute.cache_dir and not keeps_new_code():
        raise InvalidSetting(
            "PREDICTORS_COMPUTE_CACHE_DIR is a folder that can't be written, has no room, or may "
            "be written by anybody: the warning before this says which"
        )
    models = [make(name, path, settings) for name, path in named]
    logs.redirect_library_handlers()
    report = {"models": [{"name": name, "seconds": s} for name, s in warm_models(models)]}
    print_report(arguments, report, lambda _: [f"{model.name} is warm" for model in models])
    return 0


def profile(arguments: argparse.Namespace) -> int:
    """Load and warm one `--model NAME=PATH`, record steps of the request given by the other flags,
    write the trace for Perfetto, print a table of the time, and exit. No port is opened."""
    if len(arguments.model) > 1:
        raise InvalidRequest("profile takes one --model")
    settings = _read_settings(arguments)
    [(name, path)], make, verification = _read_models(arguments, settings)
    from predictors.cli import profile_table
    from predictors.compute.device.placement import keep_code
    from predictors.compute.profiling.profiler import Profiler, silence_kineto
    from predictors.operators.admin import read_profile_parameters
    from predictors.operators.offline import offline_request, record_steps, warm_model
    from predictors.operators.starting import follow_start

    # everything that can be refused is refused before minutes of loading
    steps = read_profile_parameters({"model": name, "steps": arguments.steps}).steps
    image = read_file(arguments.image) if arguments.image else None
    parameters = dict(map(named_value, arguments.parameter))
    request = offline_request(name, arguments.prompt or [PROMPT], image, parameters)
    verification.finish()
    keep_code(settings.compute, os.environ)
    silence_kineto(os.environ)
    model, profiler = make(name, path, settings), Profiler()
    logs.redirect_library_handlers()
    model.decode_v2(request)
    follow_start(model)
    model.host.events.subscribe(on_warm=freeze_loaded_objects)
    with new_file(arguments.out) as file:
        warm_model(model)
        try:
            seconds = record_steps(model, request, profiler, steps)
        finally:
            model.stop()
        report = profiler.report()
        file.write(report.trace)
    shown = {"steps": steps, "seconds": round(seconds, 3), "trace": str(arguments.out)}
    print_report(arguments, {**shown, **report.table}, profile_table.profile_lines)
    return 0


def quantize(arguments: argparse.Namespace) -> int:
    """Write a copy of a FLUX checkpoint whose transformer is stored in fp8."""
    source = _flux_folder(arguments.source)
    from predictors.models.flux.quantize import quantize_checkpoint

    num_bytes = quantize_checkpoint(source, arguments.target, _wanted_variant())
    report = {"target": str(arguments.target), "transformer_bytes": num_bytes}
    line = f"{arguments.target}: {num_bytes / 1e6:,.1f} MB of transformer weights"
    print_report(arguments, report, lambda _: [line])
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Say what a folder is, whether and how it is served, and which GPU memory that takes. Reads
    configs, headers, and whole files whose digests are recorded. Exit code 0: served; 2: refused,
    as a start would refuse it; 3: served, but not within the memory."""
    from predictors.cli.check_table import check_lines
    from predictors.compute.watch.card_facts import find_card_facts
    from predictors.operators.check import check_lora, check_report, exit_code

    settings = given_adapters.room_for_given(from_env(os.environ), arguments.lora)
    memory = None if arguments.memory is None else read_size(arguments.memory)
    folder = resolve_folder(arguments.folder, "check")
    components = _read_components(arguments.component, {"": folder}).get("")
    parts = {"model": components or {}}
    adapters = _read_loras(arguments.lora, {"model": folder}, settings, parts)
    settings = adapters.room(settings)
    card = find_card_facts(settings.compute.device, os.environ)
    if memory is not None:
        card = replace(card, memory_bytes=memory, name="")
    describe = partial(describe_folder, folder, settings, card, components)
    verify = partial(verify_folders, [(folder, components or {})], settings.compute)
    report = check_report(folder, architecture_of(folder), describe, verify, card)
    report["loras"] = [check_lora(name, each) for (_, name), each in adapters.summaries.items()]
    print_report(arguments, report, check_lines)
    return exit_code(report)


def keys(arguments: argparse.Namespace) -> int:
    """Make, list and remove API keys in a file for PREDICTORS_ACCESS_KEYS_FILE. The file has
    hashes; a key itself is printed once, when it is made."""
    from predictors.cli.keys_report import print_keys
    from predictors.operators.keys import run_keys

    return print_keys(arguments, run_keys(arguments))


def convert(arguments: argparse.Namespace) -> int:
    """Make a folder that can be served of a FLUX checkpoint in one file (BFL's or ComfyUI's
    layout). What the file does not hold is copied from --base."""
    base = _flux_folder(arguments.base)
    from predictors.models.flux.convert import convert_checkpoint, part_lines

    parts = convert_checkpoint(arguments.source, arguments.target, base, _wanted_variant())
    report = {"target": str(arguments.target), "parts": [vars(part) for part in parts]}
    print_report(arguments, report, lambda _: part_lines(parts))
    return 0


# -- composition -----------------------------------------------------------------------------------
def build(
    name: str,
    checkpoint: Path,
    settings: Settings,
    workers: Workers | None = None,
    components: Mapping[str, Mapping[str, Path]] = NO_COMPONENTS,
    loras: Mapping[str, Mapping[str, Path]] = NO_COMPONENTS,
    ranks: Mapping[str, int] = NO_RANKS,
) -> BasePredictor[Any, Any, Any]:
    """The predictor of a checkpoint folder; `workers` decode its pictures, `components` are folders
    of parts that replace its own, `loras` its adapters and `ranks` their largest, all by model.

    Raises `InvalidRequest` when no model serves it.
    """
    module, _, function = MODELS[served_architecture(checkpoint)].partition(":")
    make_predictor = getattr(importlib.import_module(module), function)
    given = {"parts": components, "loras": loras}
    more = {kind: by_model[name] for kind, by_model in given.items() if name in by_model}
    for part, folder in more.get("parts", {}).items():
        log.info("%s: %s is that in the folder %s", name, part, folder.name)
    if name in ranks:
        settings = settings.with_adapter_rank(ranks[name])
    made: BasePredictor[Any, Any, Any] = make_predictor(name, checkpoint, settings, workers, **more)
    return made


def describe_folder(
    checkpoint: Path,
    settings: Settings,
    card: CardFacts | None = None,
    components: Mapping[str, Path] | None = None,
) -> FolderSummary:
    """The content of a checkpoint folder and the memory of each way to serve it.

    Raises `ServingError` for a folder that is not served: starts and `check` refuse it alike.
    """
    with reading("the folder"):
        module, _, function = SUMMARIES[served_architecture(checkpoint)].partition(":")
        summarise = getattr(importlib.import_module(module), function)
        for folder in (checkpoint, *(components or {}).values()):
            check_entries(folder)
        parts = {"components": components} if components else {}
        summary: FolderSummary = summarise(checkpoint, settings, card or CardFacts(), **parts)
    return summary


def served_architecture(checkpoint: Path) -> str:
    """The class that a checkpoint's config names; raises `InvalidRequest` if no model serves it."""
    architecture = architecture_of(checkpoint)
    if architecture in MODELS:
        return architecture
    # before the classes, which are long to read
    hint = instead_of(architecture) or advice(checkpoint)
    raise InvalidRequest(
        f"{checkpoint.name or '/'} is a {architecture or 'folder whose config names no class'}; "
        f"{hint}{hint and '; '}served are {', '.join(MODELS)}"
    )


def architecture_of(checkpoint: Path) -> str:
    """The class that a checkpoint's config names or its `model_type` means, or an empty string."""
    return class_in_config(checkpoint) or MODEL_TYPES.get(model_type_of(checkpoint), "")


def _read_models(
    arguments: argparse.Namespace, settings: Settings
) -> tuple[list[tuple[str, Path]], Callable[..., BasePredictor[Any, Any, Any]], Verification]:
    """The models' folders by name, `build` with the given components, and the comparison of files
    with digests, which goes on. Raises `ServingError` for all that can be refused without importing
    torch, which takes seconds."""
    ensure_user_and_temp(os.environ)
    paths = named_paths(arguments.model)
    check_names(paths, read_aliases(settings.server.aliases))
    named = {name: resolve_folder(path, f"--model {name}") for name, path in paths.items()}
    components = _read_components(arguments.component, named)
    check_memory_shares(describe_folder, named, settings, components, os.environ)
    adapters = _read_loras(arguments.lora, named, settings, components)
    folders = [(folder, components.get(name, {})) for name, folder in named.items()]
    if settings.flux.checker:
        folders.append((resolve_folder(Path(settings.flux.checker), "the checker"), {}))
    ranks = adapters.ranks()
    make = partial(build, components=components, loras=adapters.paths, ranks=ranks)
    return list(named.items()), make, Verification(folders, settings.compute)


def _read_components(flags: Sequence[str], named: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """The folders that replace parts of the models in `named`, by model and part."""
    components = {
        model: {part: resolve_folder(path, f"--component {part}") for part, path in parts.items()}
        for model, parts in named_components(flags, list(named)).items()
    }
    for name in components:
        if not (named[name] / INDEX).is_file():
            raise InvalidRequest(f"--component: {name} is one model and has no parts to replace")
    return components


def _read_loras(
    flags: Sequence[str],
    named: Mapping[str, Path],
    settings: Settings,
    components: Mapping[str, Mapping[str, Path]],
) -> given_adapters.GivenAdapters:
    """The adapters of flags and settings for the models with the folders `named`."""
    kinds = {name: SUMMARIES.get(architecture_of(folder)) for name, folder in named.items()}
    own = "describe_adapter"
    describers = {name: kind.replace("summarise", own) for name, kind in kinds.items() if kind}
    paths = named_loras([*given_adapters.listed_loras(settings), *flags], list(describers))
    return given_adapters.find_adapters(paths, named, settings, describers, components)


def _flux_folder(path: Path) -> Path:
    """The folder of a FLUX pipeline; `InvalidRequest` for any other."""
    folder = resolve_folder(path, path.name)
    if architecture_of(folder) not in FLUX_PIPELINES:
        raise InvalidRequest(f"{path.name} is no FLUX checkpoint in diffusers layout")
    return folder


def _wanted_variant() -> str:
    return from_env(os.environ).compute.weights_variant


def _read_settings(arguments: argparse.Namespace) -> Settings:
    """The settings of environment and flags, in force for the log."""
    settings = from_env(os.environ)
    flags = ("host", "port", "grpc_port", "log_format")
    given = {name: value for name in flags if (value := getattr(arguments, name, None)) is not None}
    if aliases := getattr(arguments, "aliases", None):
        given["aliases"] = ",".join(aliases)
    own = replace(settings.server, **given)
    logs.configure_logging(
        own.log_format, own.log_level, on_drop=metrics.log_records_dropped_total.inc
    )
    return replace(settings, server=own)


def _open_model(folder: Path) -> AbstractContextManager[OwnModel]:
    """The model of a folder, loaded and warmed in this process, without a server."""
    settings = from_env(os.environ)
    logs.configure_logging("text", "warning")
    one = argparse.Namespace(model=[f"model={folder}"], component=[], lora=[])
    [(name, path)], make, verification = _read_models(one, settings)
    from predictors.operators.local_model import warm_local_model

    verification.finish()
    logs.redirect_library_handlers()
    return warm_local_model(make(name, path, settings))


VERBS: Mapping[str, Verb] = {
    verb.__name__: verb
    for verb in (serve, activator, warm, profile, check, quantize, convert, keys, *verbs.CLIENTS)
}

if __name__ == "__main__":
    program.end_process(main())
