"""The verb `bench`: load on one server, or on two in turns, and the report of it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from predictors.cli.arguments import new_file
from predictors.cli.asking import data_url
from predictors.cli.bench.load import LoadPlan, Sample, Target, run_load, warm_up
from predictors.cli.bench.mix import MixEntry, default_entries, mix_for, read_mix
from predictors.cli.bench.summary import compared_rounds, summarise_load, times_of
from predictors.cli.bench.tables import load_lines, load_plot, ratio_lines
from predictors.cli.endpoint import KEY_VARIABLE, RemoteServer, shown_address
from predictors.cli.models import is_ours, listed_models
from predictors.cli.named_values import named_value
from predictors.cli.outcomes import DONE, FAILED, NO_SERVER, REFUSED, VerbFailed, print_json

GOALS = ("ttft", "tpot", "latency")


@dataclass
class Measured:
    """The answers of one server, by round."""

    target: Target
    rounds: list[tuple[list[Sample], float]] = field(default_factory=list)

    def summary(self, goals_s: Mapping[str, float]) -> dict[str, Any]:
        """The figures of all rounds together."""
        samples = [sample for each, _ in self.rounds for sample in each]
        seconds = sum(seconds for _, seconds in self.rounds)
        figures = summarise_load(samples, seconds, goals_s)
        return {"url": shown_address(self.target.url), **figures}

    def times(self) -> dict[str, list[float]]:
        return times_of(sample for each, _ in self.rounds for sample in each)


def run_bench(arguments: argparse.Namespace) -> int:
    """Measure and report; returns the exit code, `FAILED` if no request was answered."""
    goals_s = read_goals(arguments.goodput)
    entries = read_entries(arguments)
    key = arguments.key or arguments.environ.get(KEY_VARIABLE, "")
    urls = [arguments.url, *([arguments.compare] if arguments.compare else [])]
    targets = [found_target(url, key, entries, arguments) for url in urls]
    measured = asyncio.run(measure(targets, plans_of(arguments), progress_of(arguments)))
    report = bench_report(measured, goals_s)
    if arguments.plot:
        write_plot(arguments.plot, measured)
    if arguments.json:
        print_json(report)
    else:
        sys.stdout.writelines(f"{line}\n" for line in bench_lines(report))
    figures = [report["first"], report["other"]] if "other" in report else [report]
    return DONE if all(each["answered"] for each in figures) else FAILED


def read_goals(given: Sequence[str]) -> dict[str, float]:
    """Seconds by name, of `ttft:500` and the like in milliseconds. Raises `VerbFailed`."""
    goals = {}
    for each in given:
        name, _, value = each.partition(":")
        try:
            goals[name] = float(value) / 1000
        except ValueError:
            goals[name] = 0.0
        if name not in GOALS or not 0 < goals[name] < float("inf"):
            raise VerbFailed(f"--goodput takes ttft:MS, tpot:MS, latency:MS, not {each!r}", REFUSED)
    return goals


def read_entries(arguments: argparse.Namespace) -> list[MixEntry]:
    if arguments.mix is not None:
        return read_mix(arguments.mix)
    body = dict(map(named_value, arguments.parameter))
    if arguments.max_tokens is not None:
        body["max_tokens"] = arguments.max_tokens
    picture = data_url(arguments.picture) if arguments.picture else ""
    return default_entries(arguments.kind, arguments.prompt, picture, body)


def plans_of(arguments: argparse.Namespace) -> list[LoadPlan]:
    """One plan, or those of the rounds of a comparison."""
    rounds = arguments.rounds if arguments.compare else 1
    seconds = arguments.seconds / rounds
    requests = -(-(arguments.requests or 0) // rounds)
    rate, clients = arguments.rate or 0.0, arguments.clients
    return [
        LoadPlan(seconds, requests, rate, clients, arguments.seed + number)
        for number in range(rounds)
    ]


def found_target(
    url: str, key: str, entries: Sequence[MixEntry], arguments: argparse.Namespace
) -> Target:
    """The server at `url` with the requests for it; it is asked for its models if need be."""
    with RemoteServer(url, key, arguments.timeout) as server:
        needs_models = any(not (entry.model or arguments.name) for entry in entries)
        models = listed_models(server, ours=is_ours(server)) if needs_models else []
        mix = mix_for(entries, models, arguments.name)
        return Target(server.url, key, mix, arguments.timeout)


def progress_of(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Writes a line to stderr while it is a terminal."""
    if arguments.json or not sys.stderr.isatty():
        return lambda line: None
    return lambda line: print(line, file=sys.stderr, flush=True)


async def measure(
    targets: Sequence[Target], plans: Sequence[LoadPlan], progress: Callable[[str], None]
) -> list[Measured]:
    """Warm each server, then load them in turns; the one that begins changes by round."""
    async with AsyncExitStack() as stack:
        measured = [Measured(await stack.enter_async_context(target)) for target in targets]
        for each in measured:
            await warm_up(each.target, refuse_dead(each.target.url))
        for number, plan in enumerate(plans):
            for each in measured[:: 1 if number % 2 == 0 else -1]:
                progress(f"round {number + 1} of {len(plans)}: {shown_address(each.target.url)}")
                each.rounds.append(await run_load(each.target, plan))
        return measured


def refuse_dead(url: str) -> Callable[[Sample], Any]:
    """Ends the verb if the first requests get no answer at all."""

    async def report(sample: Sample) -> None:
        if not sample.is_ok and not sample.status[:1].isdigit():
            where = shown_address(url)
            raise VerbFailed(f"{where} does not answer a first request: {sample.status}", NO_SERVER)

    return report


def bench_report(measured: Sequence[Measured], goals_s: Mapping[str, float]) -> dict[str, Any]:
    """The figures of one server, or of both with their ratios."""
    if len(measured) == 1:
        return measured[0].summary(goals_s)
    by_round = [
        [summarise_load(samples, seconds, goals_s) for samples, seconds in each.rounds]
        for each in measured
    ]
    whole = {name: m.summary(goals_s) for name, m in zip(("first", "other"), measured, strict=True)}
    return {**whole, **compared_rounds(*by_round)}


def bench_lines(report: Mapping[str, Any]) -> list[str]:
    if "other" not in report:
        return list(load_lines(report))
    tables = [*load_lines(report["first"]), "", *load_lines(report["other"]), ""]
    return [*tables, *ratio_lines(report)]


def write_plot(path: Path, measured: Sequence[Measured]) -> None:
    names = [shown_address(each.target.url) for each in measured]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, start=1)]
    times = {name: each.times() for name, each in zip(names, measured, strict=True)}
    with new_file(path) as file:
        file.write(load_plot(times).encode())
