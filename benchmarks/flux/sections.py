"""The sections of the FLUX benchmark: who is asked for what, in which order. Knows both sides
through their own files; prints nothing but progress.
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

from benchmarks.common import ceilings as flux_ceilings
from benchmarks.common import profiling as flux_profile
from benchmarks.common.clock import Clock
from benchmarks.flux import accuracy as flux_accuracy
from benchmarks.flux import disk as flux_disk
from benchmarks.flux import random_weights as flux_random
from benchmarks.flux import start as flux_start
from benchmarks.flux.cases import PROMPT, Case, Row
from benchmarks.flux.journal import Journal
from benchmarks.flux.ours import Ours, placement_for, settings_for
from benchmarks.flux.peer import Peer, few_steps
from benchmarks.flux.random_weights import Models
from predictors.models.flux.config import FluxConfig, read_checkpoint

EAGER, COMPILED = "diffusers eager", "diffusers compiled"
WITH_DECODER = "diffusers compiled, decoder too"
SCHNELL_STEPS = 4
HEADLINE = (("512x512", 1), ("1024x1024", 5))
HEADLINE_STEPS, HEADLINE_OF_STEPS = 10, 50
STEADY_STEPS = (4, 7)


def run(journal: Journal, folder: Path) -> None:
    """Every section that was asked for; checkpoints' configs go into `folder`."""
    configs = flux_random.write_folder(folder / "dev", *journal.options.changes)
    clock = Clock(journal.options.device)
    if journal.options.only != {"start"}:
        in_this_process(journal, clock, configs)
        torch._dynamo.reset()  # what the peer compiled keeps its weights alive
        free(clock)
    if journal.wants("start"):
        journal.section("start", lambda: start(journal, configs))


def in_this_process(journal: Journal, clock: Clock, configs: Path) -> None:
    """All but the starts; whatever is on the device is gone afterwards."""
    options, place = journal.options, placement_for(journal.options.device)
    dev = flux_random.make(configs, place.device, place.dtype)
    facts, _ = read_checkpoint(configs)
    journal.section("ceilings", lambda: ceilings(journal, clock, facts))
    peers = peers_of(journal, dev) if options.has_peer else []
    if journal.wants("headline"):
        journal.section("headline", lambda: headline(journal, peers))
    if journal.wants("accuracy", "dev", "widths", "steady", "profile"):
        journal.section("both sides", lambda: both_sides(journal, clock, dev, peers))
    if journal.wants("schnell"):
        changes = (*options.changes, flux_random.SCHNELL)
        folder = flux_random.write_folder(configs.with_name("schnell"), *changes)
        other = flux_random.schnell_of(dev, folder)
        journal.section("schnell", lambda: schnell(journal, other))
    if journal.wants("disk"):
        place_on_disk = configs.with_name("stored")
        journal.section("disk", lambda: flux_disk.measure(clock, dev, place_on_disk, place))


def both_sides(journal: Journal, clock: Clock, models: Models, peers: list[Peer]) -> None:
    """What needs our engine, on FLUX.1-dev."""
    with opened(journal, models, "ready") as ours:
        with_ours(journal, clock, peers, ours)


def with_ours(journal: Journal, clock: Clock, peers: list[Peer], ours: Ours) -> None:
    """One section after the other; accuracy comes before any clock."""
    section, first = journal.section, journal.options.first
    if journal.wants("accuracy") and peers:
        section("accuracy", lambda: accuracy(peers, ours, first))
    if journal.wants("dev"):
        cases(journal, peers, ours)
    if journal.wants("widths"):
        for case, tiers in wide_cases(journal, ours):
            section(str(case), partial(one_case, journal, peers[:1], ours, case, tiers))
    if journal.wants("steady"):
        section("steady", lambda: steady(journal, ours))
    if journal.wants("profile"):
        section("profile", lambda: profile(journal, clock, ours))
    if journal.wants("dev") and peers:
        section("drift", lambda: drift(journal, peers[-1]))


def cases(journal: Journal, peers: list[Peer], ours: Ours) -> None:
    """All sizes and steps; the first one with stages, and with the peer's decoder compiled too."""
    options, (first, *others) = journal.options, journal.options.cases
    both = [peer.with_compiled_decoder(WITH_DECODER, options.backend) for peer in peers[1:]]
    everybody = [*peers, *both]
    journal.section(str(first), partial(one_case, journal, everybody, ours, first, has_stages=True))
    for case in others:
        journal.section(str(case), partial(one_case, journal, peers, ours, case))


# -- both sides ------------------------------------------------------------------------------------
def peers_of(journal: Journal, models: Models) -> list[Peer]:
    """Diffusers eager and compiled; the attention kernel is named where that is faster."""
    facts, tokenizers = read_checkpoint(models.folder)
    eager = Peer(EAGER, models, facts, tokenizers)
    if journal.measured is not None and journal.measured.cudnn_pays:
        eager.use_attention("_native_cudnn")
    return [eager, eager.compiled(COMPILED, journal.options.backend)]


@contextmanager
def opened(journal: Journal, models: Models, name: str) -> Iterator[Ours]:
    """Our engine on the same weights, ready; its opening is kept under `name`."""
    options = journal.options
    settings = settings_for(",".join(options.sizes), options.tiers, options.slots)
    ours = Ours(models, placement_for(options.device), settings)
    try:
        journal.found[name] = ours.open()
        print(f"{name}: {journal.found[name]}", flush=True)
        yield ours
    finally:
        ours.close()
        free(Clock(options.device))


def free(clock: Clock) -> None:
    """Hand back what nobody holds."""
    gc.collect()
    if clock.is_cuda:
        torch.cuda.empty_cache()


# -- sections --------------------------------------------------------------------------------------
def ceilings(journal: Journal, clock: Clock, facts: FluxConfig) -> dict[str, Any]:
    """The card's best rates, attention at every number of tokens that occurs."""
    shape, dtype = facts.shape, placement_for(journal.options.device).dtype
    texts = {facts.default_text_tokens, min(facts.default_text_tokens, 256)}
    images = {
        case.width * case.height // facts.patch_pixels**2
        for case in (journal.options.case(size, 1) for size in journal.options.sizes)
    }
    tokens = [text + image for text, image in product(texts, images)]
    journal.measured = flux_ceilings.measure(clock, dtype, shape.num_heads, shape.head_dim, tokens)
    return journal.measured.as_json()


def accuracy(peers: Sequence[Peer], ours: Ours, case: Case) -> dict[str, Any]:
    """One pass, and whole trajectories."""
    found = {
        "velocity": flux_accuracy.velocities(peers, ours, case),
        "latents": flux_accuracy.trajectories(peers, ours, case),
    }
    print(flux_accuracy.as_text(found), flush=True)
    return found


def one_case(
    journal: Journal,
    peers: Sequence[Peer],
    ours: Ours,
    case: Case,
    tiers: Sequence[str] | None = None,
    *,
    has_stages: bool = False,
) -> None:
    """A case by everybody, ours in all tiers or in some; its stages if wanted."""
    runs = journal.options.runs if case == journal.options.first else journal.options.other_runs
    for peer in peers:
        first_s = peer.warm(case)
        row, _ = peer.measure(case, runs)
        row.notes["first_s"] = first_s
        told(journal, row, ours.facts)
        if has_stages:
            journal.stages.append(peer.stages(case, row))
    for tier in distinct(ours, case, ours.tiers if tiers is None else tiers):
        ours.draw(few_steps(case), tier)
        row, _ = ours.measure(case, tier, runs)
        told(journal, row, ours.facts)
        if has_stages:
            journal.stages.append(ours.stages(case, tier, row))


def distinct(ours: Ours, case: Case, tiers: Sequence[str]) -> list[str]:
    """Without the tiers that do what an earlier one does: with few steps none is skipped."""
    works = {tier: ours.prepare(case, tier) for tier in tiers}
    kinds = {tier: (work.form, work.plan.num_calls) for tier, work in works.items()}
    return [tier for i, tier in enumerate(tiers) if kinds[tier] not in list(kinds.values())[:i]]


def told(journal: Journal, row: Row, facts: FluxConfig) -> None:
    """Keep a row, and say so: a run may be cut off."""
    journal.add(row, facts)
    print(f"  {row.engine}: {row.seconds.median:.3f} s", flush=True)


def wide_cases(journal: Journal, ours: Ours) -> list[tuple[Case, list[str]]]:
    """Each size at each width above one that the policy uses, and the tiers that use it."""
    options = journal.options
    found: dict[Case, list[str]] = {}
    for size, tier in product(options.sizes, ours.tiers):
        case = options.case(size, options.steps[-1])
        width = ours.width(case, tier)
        if width > 1:
            found.setdefault(replace(case, batch=width), []).append(tier)
    return list(found.items())


def schnell(journal: Journal, models: Models) -> None:
    """FLUX.1-schnell, four steps, at the first size."""
    options = journal.options
    case = options.case(options.sizes[0], SCHNELL_STEPS, model="schnell")
    peers = peers_of(journal, models) if options.has_peer else []
    with opened(journal, models, "schnell ready") as ours:
        one_case(journal, peers, ours, case)


def steady(journal: Journal, ours: Ours) -> dict[str, Any]:
    """Mixed sizes, steps and tiers, arriving while others are drawn, with every synchronising call
    an error: what the host waited for, and how much was compiled or captured after ready. A second
    round has a prompt that no cache holds."""
    options = journal.options
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


def drift(journal: Journal, peer: Peer) -> None:
    """The compiled peer once more at the end: has the card slowed down meanwhile?"""
    row, _ = peer.measure(journal.options.first, 1)
    journal.found["drift"] = {"engine": peer.name, "seconds": row.seconds.median}


def profile(journal: Journal, clock: Clock, ours: Ours) -> list[Any]:
    """A trace of one picture of few steps per tier; prints the kernels that take most."""
    options = journal.options
    assert options.trace is not None
    case = replace(options.first, steps=min(options.first.steps, 4))
    tops = []
    for tier in ours.tiers:
        ours.draw(case, tier)
        path = options.trace.with_name(f"{options.trace.name}-{tier}.json.gz")
        kernels = flux_profile.trace(clock, partial(ours.draw, case, tier), path)
        print(f"\n{case}, {tier}, trace in {path}\n{flux_profile.as_text(kernels)}", flush=True)
        tops.append({"tier": tier, "case": case, "kernels": kernels})
    return tops


def start(journal: Journal, configs: Path) -> dict[str, Any]:
    """Cold and warm."""
    options = journal.options
    sizes = ",".join(options.sizes)
    return flux_start.measure(configs, sizes, options.tiers, str(options.device))


def headline(journal: Journal, peers: Sequence[Peer]) -> list[dict[str, Any]]:
    """What the project began with: the gain of torch.compile on the pipeline at 512x512 and at
    1024x1024 in fives. Ten steps are run; fifty are ten's fixed costs and fifty times a step."""
    found = []
    for size, batch in HEADLINE if journal.options.device.type == "cuda" else (("64x64", 1),):
        case = journal.options.case(size, HEADLINE_STEPS, batch=batch)
        seconds = {}
        for peer in peers:
            peer.warm(case)
            row, _ = peer.measure(case, min(2, journal.options.runs))
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
