"""Seconds of the phases of a start in the image's process: import, load, warm-up and first answer,
of each room alone and of both, with the files read from the disk (cold) or from memory (warm).

`python -m benchmarks.serving.image_starts` (as root, after `make e2e` or `python -m
tests.e2e.image build`) starts servers in the image of the e2e suite, in turn with those of another
image if `--before` names one, and writes benchmarks/results/image_starts.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.common.machine import machine
from benchmarks.common.paths import RESULTS
from tests.e2e.image import builder, places
from tests.product.test_imports import OF_OTHERS, PROGRAM, UNUSED

ROOMS = {"flux": ("flux",), "qwen-vl": ("qwen-vl",), "both": ("flux", "qwen-vl")}
CACHES = ("cold", "warm")
STARTS, BEFORE = "starts", "before"
"""Names of images in the results."""
SERVED = "/checkpoints"
VOLUMES = (f"{places.ROOT / 'checkpoints'}:{SERVED}:ro",)
ASKED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "flux": ("/v1/images/generations", {"model": "flux", "prompt": "a red circle"}),
    "qwen-vl": (
        "/v1/chat/completions",
        {
            "model": "qwen-vl",
            "messages": [{"role": "user", "content": "What is red?"}],
            "max_tokens": 1,
        },
    ),
}
"""The first request of a model: one picture, or one token."""
PATIENCE_S = 900.0
TICKS = os.sysconf("SC_CLK_TCK")
IMPORTS = f"""{PROGRAM}
specs = [getattr(each, "__spec__", None) for each in [*sys.modules.values()]]
files = [getattr(each, "cached", None) for each in specs]
files = [Path(name) for name in files if name]
print(len(files), sum(file.exists() for file in files))
"""
"""Prints the modules of a start before its load, and how many of those in Python have bytecode."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The process at one line of its log."""

    message: str
    at_s: float
    """Of `time.time`, when the line was read."""
    cpu_s: float
    """Processor seconds of the process so far."""


@dataclass(slots=True)
class StartSeconds:
    """Seconds of the phases of one start."""

    wall: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)
    """The server's process alone; rooms that load at once share one figure."""
    read_mib: float = 0.0
    """From the disk."""


def phases_of(begin_s: float, moments: Sequence[Moment], models: Sequence[str]) -> StartSeconds:
    """The phases of a start at `begin_s`: they end when the first model begins to load, the last
    has loaded, the last is warm. Raises `ValueError` for a log without these lines."""
    ends = {
        "import": [_first(moments, f"{model} is loading") for model in models][:1],
        "load": [_first(moments, f"{model}: load took") for model in models],
        "warm-up": [_first(moments, f"{model} is ready") for model in models],
    }
    found = StartSeconds()
    last_s, last_cpu_s = begin_s, 0.0
    for phase, moments_of in ends.items():
        at_s, cpu_s = max((each.at_s, each.cpu_s) for each in moments_of)
        found.wall[phase] = at_s - last_s
        found.processor[phase] = cpu_s - last_cpu_s
        last_s, last_cpu_s = at_s, cpu_s
    found.wall["until ready"] = last_s - begin_s
    found.processor["until ready"] = last_cpu_s
    return found


def _first(moments: Sequence[Moment], begin: str) -> Moment:
    for moment in moments:
        if moment.message.startswith(begin):
            return moment
    raise ValueError(f"the log has no line that begins with {begin!r}")


def medians(runs: Sequence[StartSeconds]) -> dict[str, Any]:
    """Of each phase, with the least and the most."""

    def of(values: Sequence[float]) -> list[float]:
        return [round(x, 2) for x in (statistics.median(values), min(values), max(values))]

    return {
        "wall_s": {name: of([run.wall[name] for run in runs]) for name in runs[0].wall},
        "processor_s": {
            name: of([run.processor[name] for run in runs]) for name in runs[0].processor
        },
        "read_mib": of([run.read_mib for run in runs]),
        "runs": len(runs),
    }


# -- the image -----------------------------------------------------------------------------------
@contextmanager
def container(image: str) -> Iterator[tuple[str, Path]]:
    """A container of a server's image and the folder where its files are, gone afterwards."""
    if not builder.exists(image):
        raise SystemExit(f"{image} is not there: python -m tests.e2e.image build (as root)")
    made = builder.buildah_says("from", "--pull-never", image).strip()
    try:
        yield made, Path(builder.buildah_says("mount", made).strip())
    finally:
        builder.buildah_says("rm", made)


def forget_files(*folders: Path) -> None:
    """Have the system forget what it keeps in memory of these folders' files."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)


def one_start(made: str, models: Sequence[str]) -> StartSeconds:
    """Start a server of these models, wait until it is ready, ask each for one answer, end it."""
    named = " ".join(f"--model {model}={SERVED}/shapes-{model}" for model in models)
    serve = f"python -m predictors serve --log-format json --port 0 --grpc-port 0 {named}"
    command = builder.command_in(made, "sh", "-c", f"echo $$; exec {serve}", volumes=VOLUMES)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as (
        process
    ):
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        begin_s = time.time()
        try:
            moments: list[Moment] = []
            for line in process.stdout:
                message = json.loads(line)["message"] if line.startswith("{") else line
                moments.append(Moment(message, time.time(), cpu_s(pid)))
                if message.startswith("ready: "):
                    break
            else:
                raise SystemExit("the server ended: " + "; ".join(m.message for m in moments))
            found = phases_of(begin_s, moments, models)
            address = moments[-1].message.rpartition(" at ")[2].strip()
            for model in models:
                before_s, before_cpu_s = time.time(), cpu_s(pid)
                ask(address.rstrip("/"), model)
                found.wall[f"first answer of {model}"] = time.time() - before_s
                found.processor[f"first answer of {model}"] = cpu_s(pid) - before_cpu_s
            found.read_mib = read_mib(pid)
        finally:
            os.kill(pid, 15)
            process.stdout.read()
    return found


def ask(address: str, model: str) -> None:
    path, body = ASKED[model]
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(address + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        answer.read()


def cpu_s(pid: int) -> float:
    """Processor seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def read_mib(pid: int) -> float:
    """MiB that a process has read from the disk."""
    lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(lines["read_bytes"]) / 2**20


def imports(made: str, model: str) -> dict[str, Any]:
    """The modules of a start before its load, against the lists of `tests.product.test_imports`."""
    folder = f"shapes-{model}"
    words = ("python", "-c", IMPORTS, f"{SERVED}/{folder}")
    command = builder.command_in(made, *words, volumes=VOLUMES)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *_, listed, counted = done.stdout.splitlines()
    found = set(json.loads(listed))
    in_python, compiled = map(int, counted.split())
    return {
        "modules": len(found),
        "of_them_in_python": in_python,
        "with_bytecode": compiled,
        "against_the_budget": sorted(found & {*UNUSED, *OF_OTHERS[folder]}),
    }


def measure(num_runs: int, images: Mapping[str, str]) -> dict[str, Any]:
    """Starts of each image, by its name in the results, in turn."""
    runs: dict[tuple[str, str, str], list[StartSeconds]] = {}
    loads = []
    for number, (room, models), (name, image) in product(
        range(num_runs), ROOMS.items(), images.items()
    ):
        with container(image) as (made, files):
            for cache in CACHES:
                if cache == "cold":
                    forget_files(files / "opt", files / "usr", places.ROOT / "checkpoints")
                started = one_start(made, models)
                runs.setdefault((name, room, cache), []).append(started)
                loads.append(os.getloadavg()[0])
                print(number, name, room, cache, started, flush=True)
    found: dict[str, Any] = {
        "machine": machine(()),
        "load_average": [round(min(loads), 1), round(max(loads), 1)],
        "niceness": os.nice(0),
    }
    for name, image in images.items():
        found[name] = {
            room: {cache: medians(runs[name, room, cache]) for cache in CACHES} for room in ROOMS
        }
        with container(image) as (made, _):
            of_models = {model: imports(made, model) for model in ROOMS["both"]}
        found["imports" if name == STARTS else f"imports {name}"] = of_models
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--image", default=places.SERVER)
    parser.add_argument("--before", help="another image, whose starts are in turn with these")
    parser.add_argument("--results", type=Path, default=RESULTS / "image_starts.json")
    options = parser.parse_args()
    before = {BEFORE: options.before} if options.before else {}
    found = measure(options.runs, {**before, STARTS: options.image})
    options.results.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
