"""The sections of the FLUX benchmark, in order: ceilings of the card, accuracy before any timing,
then the cases by diffusers and by this engine, and what is measured once.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ceilings, profiling
from benchmarks.common.clock import Clock
from benchmarks.flux import accuracy, disk, random_weights, start
from benchmarks.flux.cases import PROMPT, Case
from benchmarks.flux.ours import Ours, placement_for, settings_for
from benchmarks.flux.peer import Peer, few_steps
from benchmarks.flux.random_weights import Models
from benchmarks.flux.run import FluxRun
from predictors.models.flux.config import FluxConfig, read_checkpoint

EAGER, COMPILED = "diffusers eager", "diffusers compiled"
WITH_DECODER = "diffusers compiled, decoder too"
SCHNELL_STEPS = 4
HEADLINE = (("512x512", 1), ("1024x1024", 5))
HEADLINE_STEPS, HEADLINE_OF_STEPS = 10, 50
STEADY_STEPS = (4, 7)


def measure(run: FluxRun, folder: Path) -> None:
    """Run every section that was asked for; the checkpoints' configs go into `folder`."""
    configs = random_weights.write_folder(folder / "dev", *run.options.changes)
    clock = Clock(run.options.device)
    if run.options.only != {"start"}:
        in_this_process(run, clock, configs)
        torch._dynamo.reset()  # what the peer compiled keeps its weights alive
        free(clock)
    if run.wants("start"):
        run.section("start", lambda: starts(run, configs))


def in_this_process(run: FluxRun, clock: Clock, configs: Path) -> None:
    """All sections but the starts. Device memory is free again afterwards."""
    options, place = run.options, placement_for(run.options.device)
    dev = random_weights.make(configs, place.device, place.dtype)
    config, _ = read_checkpoint(configs)
    run.section("ceilings", lambda: card_ceilings(run, clock, config))
    peers = peers_of(run, dev) if options.has_peer else []
    if run.wants("headline"):
        run.section("headline", lambda: headline(run, peers))
    if run.wants("accuracy", "dev", "widths", "steady", "profile"):
        run.section("both sides", lambda: both_sides(run, clock, dev, peers))
    if run.wants("schnell"):
        changes = (*options.changes, random_weights.SCHNELL)
        folder = random_weights.write_folder(configs.with_name("schnell"), *changes)
        other = random_weights.other_of(dev, folder)
        run.section("schnell", lambda: schnell(run, other))
    if run.wants("disk"):
        place_on_disk = configs.with_name("stored")
        run.section("disk", lambda: disk.measure(clock, dev, place_on_disk, place))


def both_sides(run: FluxRun, clock: Clock, models: Models, peers: list[Peer]) -> None:
    with opened(run, models, "ready") as ours:
        with_ours(run, clock, peers, ours)


def with_ours(run: FluxRun, clock: Clock, peers: list[Peer], ours: Ours) -> None:
    """Accuracy first, then the timed sections."""
    section, first = run.section, run.options.first
    if run.wants("accuracy") and peers:
        section("accuracy", lambda: answers(peers, ours, first))
    if run.wants("dev"):
        cases(run, peers, ours)
    if run.wants("widths"):
        for case, tiers in wide_cases(run, ours):
            section(str(case), partial(one_case, run, peers[:1], ours, case, tiers))
    if run.wants("steady"):
        section("steady", lambda: steady(run, ours))
    if run.wants("profile"):
        section("profile", lambda: profile(run, clock, ours))
    if run.wants("dev") and peers:
        section("drift", lambda: drift(run, peers[-1]))


def cases(run: FluxRun, peers: list[Peer], ours: Ours) -> None:
    """All sizes and steps; the first one with stages, and with the peer's decoder compiled too."""
    options, (first, *others) = run.options, run.options.cases
    both = [peer.with_compiled_decoder(WITH_DECODER, options.backend) for peer in peers[1:]]
    everybody = [*peers, *both]
    run.section(str(first), partial(one_case, run, everybody, ours, first, has_stages=True))
    for case in others:
        run.section(str(case), partial(one_case, run, peers, ours, case))


# -- both sides ------------------------------------------------------------------------------------
def peers_of(run: FluxRun, models: Models) -> list[Peer]:
    """Diffusers eager and compiled, with cuDNN's attention where that is faster."""
    config, _ = read_checkpoint(models.folder)
    eager = Peer(EAGER, models, config)
    if run.measured is not None and run.measured.cudnn_pays:
        eager.use_attention("_native_cudnn")
    return [eager, eager.compiled(COMPILED, run.options.backend)]


@contextmanager
def opened(run: FluxRun, models: Models, name: str) -> Iterator[Ours]:
    """Our engine on the same weights, ready; the figures of its start are kept under `name`."""
    options = run.options
    settings = settings_for(",".join(options.sizes), options.tiers, options.slots)
    ours = Ours(models, placement_for(options.device), settings)
    try:
        run.found[name] = ours.open()
        print(f"{name}: {run.found[name]}", flush=True)
        yield ours
    finally:
        ours.close()
        free(Clock(options.device))


def free(clock: Clock) -> None:
    gc.collect()
    if clock.is_cuda:
        torch.cuda.empty_cache()


# -- sections --------------------------------------------------------------------------------------
def card_ceilings(run: FluxRun, clock: Clock, config: FluxConfig) -> dict[str, Any]:
    shape, dtype = config.shape, placement_for(run.options.device).dtype
    texts = {config.default_text_tokens, min(config.default_text_tokens, 256)}
    images = {
        case.width * case.height // config.patch_pixels**2
        for case in (run.options.case(size, 1) for size in run.options.sizes)
    }
    tokens = [text + image for text, image in product(texts, images)]
    run.measured = ceilings.measure(clock, dtype, shape.num_heads, shape.head_dim, tokens)
    return run.measured.as_json()


def answers(peers: Sequence[Peer], ours: Ours, case: Case) -> dict[str, Any]:
    found = {
        "velocity": accuracy.velocities(peers, ours, case),
        "latents": accuracy.trajectories(peers, ours, case),
    }
    print(f"  {found['velocity']['verdict']}", flush=True)
    return found


def one_case(
    run: FluxRun,
    peers: Sequence[Peer],
    ours: Ours,
    case: Case,
    tiers: Sequence[str] | None = None,
    *,
    has_stages: bool = False,
) -> None:
    runs = run.options.runs if case == run.options.first else run.options.other_runs
    for peer in peers:
        first_s = peer.warm(case)
        row, _ = peer.measure(case, runs)
        row.notes["first_s"] = first_s
        run.add(row, ours.config)
        if has_stages:
            run.stages.append(peer.stages(case, row))
    for tier in distinct(ours, case, ours.tiers if tiers is None else tiers):
        ours.draw(few_steps(case), tier)
        row, _ = ours.measure(case, tier, runs)
        run.add(row, ours.config)
        if has_stages:
            run.stages.append(ours.stages(case, tier, row))


def distinct(ours: Ours, case: Case, tiers: Sequence[str]) -> list[str]:
    """Without tiers that equal an earlier one: with few steps turbo skips none."""
    works = {tier: ours.prepare(case, tier) for tier in tiers}
    kinds = {tier: (work.form, work.plan.num_calls) for tier, work in works.items()}
    return [tier for i, tier in enumerate(tiers) if kinds[tier] not in list(kinds.values())[:i]]


def wide_cases(run: FluxRun, ours: Ours) -> list[tuple[Case, list[str]]]:
    """Each size at each width above one that the policy uses, and the tiers that use it."""
    options = run.options
    found: dict[Case, list[str]] = {}
    for size, tier in product(options.sizes, ours.tiers):
        case = options.case(size, options.steps[-1])
        width = ours.width(case, tier)
        if width > 1:
            found.setdefault(replace(case, batch=width), []).append(tier)
    return list(found.items())


def schnell(run: FluxRun, models: Models) -> None:
    options = run.options
    case = options.case(options.sizes[0], SCHNELL_STEPS, model="schnell")
    peers = peers_of(run, models) if options.has_peer else []
    with opened(run, models, "schnell ready") as ours:
        one_case(run, peers, ours, case)


def steady(run: FluxRun, ours: Ours) -> dict[str, Any]:
    """Mixed sizes, steps and tiers, arriving while others are drawn, with every synchronising call
    an error: host synchronisations, and compilations and captures after ready. A second round has a
    prompt that no cache holds."""
    options = run.options
    mixed = product(options.sizes, STEADY_STEPS, ours.tiers)
    waiting = [(options.case(size, steps), tier) for size, steps, tier in mixed]
    found: dict[str, Any] = {"pictures": len(waiting)}
    for name, prompt in (("known prompt", PROMPT), ("new prompt", f"{PROMPT}, seen from above")):
        try:
            found[name] = {"turns": ours.drive_mixed(waiting, prompt), "host_syncs": 0}
        except RuntimeError as error:
            found[name] = {"host_syncs": str(error).splitlines()[0]}
    found["since ready"] = ours.late_work()
    print(f"  {found}", flush=True)
    return found


def drift(run: FluxRun, peer: Peer) -> None:
    """The compiled peer once more at the end, to see whether the card slowed down."""
    row, _ = peer.measure(run.options.first, 1)
    run.found["drift"] = {"engine": peer.name, "seconds": row.seconds.median}


def profile(run: FluxRun, clock: Clock, ours: Ours) -> list[Any]:
    """A trace of one picture of few steps per tier; prints the kernels that take most."""
    options = run.options
    assert options.trace is not None
    case = replace(options.first, steps=min(options.first.steps, 4))
    tops = []
    for tier in ours.tiers:
        ours.draw(case, tier)
        path = options.trace.with_name(f"{options.trace.name}-{tier}.json.gz")
        kernels = profiling.trace(clock, partial(ours.draw, case, tier), path)
        print(f"\n{case}, {tier}, trace in {path}\n{profiling.as_text(kernels)}", flush=True)
        tops.append({"tier": tier, "case": case, "kernels": kernels})
    return tops


def starts(run: FluxRun, configs: Path) -> dict[str, Any]:
    options = run.options
    sizes = ",".join(options.sizes)
    return start.measure(configs, sizes, options.tiers, str(options.device))


def headline(run: FluxRun, peers: Sequence[Peer]) -> list[dict[str, Any]]:
    """The gain of torch.compile on diffusers' pipeline at 512x512 and at 1024x1024 in batches of
    five. Ten steps are run; fifty are derived from the fixed costs and the time of a step."""
    found = []
    for size, batch in HEADLINE if run.options.device.type == "cuda" else (("64x64", 1),):
        case = run.options.case(size, HEADLINE_STEPS, batch=batch)
        seconds = {}
        for peer in peers:
            peer.warm(case)
            row, _ = peer.measure(case, min(2, run.options.runs))
            assert row.step_ms is not None
            step_s = row.step_ms.median / 1e3
            fixed_s = row.seconds.median - HEADLINE_STEPS * step_s
            seconds[peer.name] = {
                "step_ms": row.step_ms,
                "measured_s": row.seconds,
                f"derived_{HEADLINE_OF_STEPS}_steps_s": fixed_s + HEADLINE_OF_STEPS * step_s,
            }
        found.append({"case": case, "by": seconds})
        print(f"  {case}: {seconds}", flush=True)
    return found
