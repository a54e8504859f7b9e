"""Runs the fuzzers and writes what they found.

    python -m tests.fuzz quick|full [--seed N] [--parts http,...] [--results FILE]
    python -m tests.fuzz replay PART BASE64

A part that finds something ends the program with 1 and prints the seed, a minimised input and how
to replay it. `quick` is CI's: two minutes. `full` takes about 20 minutes and writes
`benchmarks/results/fuzz.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.fuzz import formats, http_campaign, served
from tests.fuzz.findings import Finding, finding_of
from tests.fuzz.mutation import make_input, problem_of
from tests.fuzz.seeds import stored
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
TOOL = Path(os.environ.get("FUZZ_VENV", ROOT / "out" / "fuzz")) / "bin" / "st"
WIRE_TESTS = "tests/fuzz/test_wire_formats.py"
CHILD_S = 1500.0
KINDS = {
    "crash": "crashes",
    "hang": "hangs",
    "error": "errors",
    "disagreement": "disagreements",
    "status": "wrong_statuses",
}


@dataclass(frozen=True)
class Sizes:
    """Cases of each kind of part."""

    http: int
    mutation: int
    image: int
    coverage: int
    examples: int
    schema: int
    requests: int
    formats: int
    with_edges: bool = False

    def scaled(self, by: float) -> Sizes:
        counts = {name: n for name, n in vars(self).items() if name != "with_edges"}
        return replace(self, **{name: max(1, round(n * by)) for name, n in counts.items()})


QUICK = Sizes(
    http=5_000,
    mutation=4_000,
    image=3_000,
    coverage=5_000,
    examples=100,
    schema=5,
    requests=600,
    formats=100,
)
FULL = Sizes(
    http=100_000,
    mutation=100_000,
    image=60_000,
    coverage=200_000,
    examples=1_000,
    schema=60,
    requests=10_000,
    formats=2_000,
    with_edges=True,
)


@dataclass
class Outcome:
    """Cases, seconds and findings of one part."""

    part: str
    cases: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        by_kind = Counter(finding.kind for finding in self.findings)
        return {
            "part": self.part,
            "cases": self.cases,
            "seconds": round(self.seconds, 1),
            **{name: by_kind[kind] for kind, name in KINDS.items()},
            **({"counts": dict(sorted(self.counts.items()))} if self.counts else {}),
            "findings": [finding.as_json() for finding in self.findings],
        }


# -- parts ----------------------------------------------------------------------------------------
def run_http(seed: int, sizes: Sizes) -> Iterable[Outcome]:
    """This server's parser beside h11 and nginx."""
    with_nginx = http_campaign.has_nginx()
    found, counts = asyncio.run(http_campaign.run(seed, sizes.http, with_nginx=with_nginx))
    counts["nginx"] = int(with_nginx)
    yield Outcome(http_campaign.PART, sizes.http, findings=found, counts=counts)


def run_mutation(seed: int, sizes: Sizes) -> Iterable[Outcome]:
    """Seeded changes of the stored inputs, each target in a process of its own."""
    for target in TARGETS:
        cases = sizes.image if target in ("image", "png") else sizes.mutation
        with tempfile.TemporaryDirectory() as folder:
            progress = Path(folder) / "case"
            command = [
                sys.executable, "-m", "tests.fuzz.mutation", target, "--seed", str(seed),
                "--cases", str(cases), "--progress", str(progress),
            ]  # fmt: skip
            done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=CHILD_S)
            if done.returncode == 0:
                read = json.loads(done.stdout)
                yield Outcome(target, read["cases"], findings=[*map(finding_of, read["findings"])])
                continue
            case = int(progress.read_bytes() or b"0")
        raw = make_input(target, stored(target), seed, case)
        kind = "hang" if b"Timeout (" in done.stderr else "crash"
        message = f"exit status {done.returncode}: {done.stderr[-2000:].decode(errors='replace')}"
        yield Outcome(target, case, findings=[Finding(target, kind, seed, case, message, raw)])


def run_coverage(seed: int, sizes: Sizes) -> Iterable[Outcome]:
    """atheris on each target, where it is installed."""
    probe = [sys.executable, "-c", "import atheris"]
    if subprocess.run(probe, capture_output=True).returncode:
        print("atheris is not installed here: its part is skipped")
        return
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            inputs = Path(folder) / "inputs"
            inputs.mkdir()
            for i, raw in enumerate(stored(target)):
                (inputs / f"{i:04}").write_bytes(raw)
            runs = sizes.coverage // (10 if target in ("image", "png", "inflating") else 1)
            command = [
                sys.executable, "-m", "tests.fuzz.coverage", target, f"-seed={seed}",
                f"-runs={runs}", "-max_len=4096", "-timeout=60", "-rss_limit_mb=3000",
                f"-artifact_prefix={folder}/found-", str(inputs),
            ]  # fmt: skip
            done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=CHILD_S)
            outcome = Outcome(f"coverage-{target}", runs)
            outcome.counts["inputs kept"] = len(list(inputs.iterdir()))
            if done.returncode:
                artifacts = sorted(Path(folder).glob("found-*"))
                raw = artifacts[0].read_bytes() if artifacts else b""
                kind = "hang" if artifacts and "timeout" in artifacts[0].name else "crash"
                message = done.stderr[-2500:].decode(errors="replace")
                outcome.findings.append(Finding(target, kind, seed, 0, message, raw))
            yield outcome


def run_wire(seed: int, sizes: Sizes) -> Iterable[Outcome]:
    """Hypothesis over both wire formats and the bodies."""
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.json"
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", WIRE_TESTS,
            f"--hypothesis-seed={seed}", f"--timeout={CHILD_S:g}",
        ]  # fmt: skip
        given = os.environ | {
            "FUZZ_EXAMPLES": str(sizes.examples),
            "FUZZ_COUNTS": str(counts),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            command, cwd=ROOT, env=given, capture_output=True, timeout=2 * CHILD_S
        )
        read = Counter(json.loads(counts.read_text())) if counts.exists() else Counter()
        cases = sum(n for name, n in read.items() if "accepted" not in name)
        outcome = Outcome("wire", cases, counts=read)
        if done.returncode:
            message = (done.stdout + done.stderr)[-4000:].decode(errors="replace")
            outcome.findings.append(Finding("wire", "error", seed, 0, message, b""))
    yield outcome


def run_served(seed: int, sizes: Sizes) -> Iterable[Outcome]:
    """The real server with both models."""
    with served.fuzzed_server() as running:
        started = time.monotonic()
        found, counts = served.run_rest(running.url, seed, sizes.requests)
        yield Outcome("rest", sizes.requests, time.monotonic() - started, found, counts)
        started = time.monotonic()
        found, counts = served.run_grpc(running.grpc_target, seed, sizes.requests)
        yield Outcome("grpc", sizes.requests, time.monotonic() - started, found, counts)
        started = time.monotonic()
        found, counts = formats.run(running, seed, sizes.formats)
        yield Outcome(formats.PART, sizes.formats, time.monotonic() - started, found, counts)
        for part in ("schema-own", "schema-oip"):
            started = time.monotonic()
            cases, found = served.run_schema(
                TOOL, running.url, part, seed, sizes.schema, with_edges=sizes.with_edges
            )
            yield Outcome(part, cases, time.monotonic() - started, found)


PARTS: dict[str, Callable[[int, Sizes], Iterable[Outcome]]] = {
    "http": run_http,
    "mutation": run_mutation,
    "coverage": run_coverage,
    "wire": run_wire,
    "served": run_served,
}


# -- the program ----------------------------------------------------------------------------------
def run(
    seed: int, sizes: Sizes, parts: Iterable[str], done: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """Run the parts. `done` is called after each outcome."""
    outcomes: list[Outcome] = []
    for part in parts:
        started = time.monotonic()
        for outcome in PARTS[part](seed, sizes):
            outcome.seconds = outcome.seconds or time.monotonic() - started
            started = time.monotonic()
            outcomes.append(outcome)
            counts = " ".join(f"{name} {n}" for name, n in sorted(outcome.counts.items()))
            print(
                f"{outcome.part}: {outcome.cases} cases in {outcome.seconds:.0f} s, "
                f"{len(outcome.findings)} findings; {counts}",
                flush=True,
            )
            for finding in outcome.findings:
                print(finding.report(), flush=True)
            done(outcomes)
    return outcomes


def summary_of(seed: int, outcomes: list[Outcome], before: Path | None) -> dict[str, Any]:
    """The figures of all parts. Those of parts that have not run are kept from `before`."""
    parts = {outcome.part: outcome.as_json() for outcome in outcomes}
    if before is not None and before.exists():
        known = json.loads(before.read_text())
        if known["seed"] == seed:
            parts = {part["part"]: part for part in known["parts"]} | parts
    names = ("cases", "seconds", *KINDS.values())
    total = {name: round(sum(part[name] for part in parts.values())) for name in names}
    return {"seed": seed, **total, "parts": list(parts.values())}


def replay(part: str, raw: bytes) -> int:
    """Check one input again. Returns the exit status."""
    if part == http_campaign.PART:
        problems = asyncio.run(http_campaign.check(raw))
    elif part in TARGETS:
        problem = problem_of(part, raw)
        problems = [] if problem is None else [": ".join(problem)]
    else:
        print(f"{part} is replayed as a whole: python -m tests.fuzz full --seed N --parts ...")
        return 2
    print("\n".join(problems) or "nothing is wrong with this input")
    return 1 if problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("quick", "full"):
        runs = verbs.add_parser(verb)
        runs.add_argument("--seed", type=int, default=1)
        runs.add_argument("--parts", default=",".join(PARTS))
        runs.add_argument("--scale", type=float, default=1.0, help="cases, of the usual number")
        runs.add_argument("--results", type=Path, default=RESULTS if verb == "full" else None)
    again = verbs.add_parser("replay")
    again.add_argument("part")
    again.add_argument("input", type=base64.b64decode)
    options = parser.parse_args()
    if options.verb == "replay":
        return replay(options.part, options.input)
    sizes = (QUICK if options.verb == "quick" else FULL).scaled(options.scale)

    def write(outcomes: list[Outcome]) -> None:
        if options.results is not None:
            text = json.dumps(summary_of(options.seed, outcomes, options.results), indent=1)
            options.results.write_text(text + "\n")

    outcomes = run(options.seed, sizes, options.parts.split(","), write)
    summary = summary_of(options.seed, outcomes, None)
    print(json.dumps({name: value for name, value in summary.items() if name != "parts"}))
    return 1 if any(outcome.findings for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
