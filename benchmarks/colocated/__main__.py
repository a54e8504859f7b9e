"""FLUX and Qwen-VL in one process on one card: the time between tokens of eight streaming clients
alone and beside pictures, and the time of a picture alone and beside the clients, for each policy
of `sharing.policy`.

`python -m benchmarks.colocated` takes random weights of full size, made on the card; `--toy` takes
the embedded checkpoints on any device. One server serves all measurements: the policy is changed
between them, so under `none` and `priority` a step is in pieces too, but nothing waits between
them. `--policy` measures one policy alone, with a server that starts with it: only `turns` cuts a
step then. Clients run in a process of their own; pictures are asked for over HTTP, one after the
other.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.colocated.driver import CLIENTS, FLUX, FULL, POLICIES, QWEN, TOY, Driver, Size
from benchmarks.common import paths
from benchmarks.common.goals import Goal
from benchmarks.common.run import BenchmarkRun, write_json
from benchmarks.common.tables import columns
from predictors.cli.child import free_ports

PATIENCE_S = 60.0
GOALS = {
    "itl_ms_p99": Goal("99th percentile between tokens beside a picture, ms", 60.0),
    "picture_ratio": Goal("a picture's time beside 8 clients, of its time alone", 1.25),
}
GOAL_TIERS = ("high", "turbo")
HEAD = ("policy", "tier", "ITL p50", "p99", "max, ms", "tokens/s", "picture, s", "of alone")


def build(name: str, folder: Path, settings: Any, workers: Any, *, is_toy: bool) -> Any:
    """The predictor of a folder; FLUX's random weights stay on the device."""
    from predictors import __main__ as composition

    if is_toy or name == QWEN:
        return composition.build(name, folder, settings, workers)
    import torch

    from benchmarks.flux import random_weights
    from predictors.diffusion.predictor import DiffusionPredictor
    from predictors.models.flux.model import FluxModel

    made = random_weights.make(folder, torch.device(settings.compute.device), torch.bfloat16)
    return DiffusionPredictor(name, FluxModel(folder, made.opened), settings, workers)


def write_folders(folder: Path, device: str) -> list[tuple[str, Path]]:
    """The random checkpoints of full size: FLUX's without weights, Qwen's with them."""
    import torch

    from benchmarks.flux import random_weights as flux_weights
    from benchmarks.qwen_vl import random_weights as qwen_weights
    from benchmarks.qwen_vl.sizes import THREE

    flux, qwen = folder / FLUX, folder / QWEN
    if not flux.exists():
        flux_weights.write_folder(flux, flux_weights.FULL)
    qwen_weights.make(qwen, THREE.full, torch.device(device))
    return [(FLUX, flux), (QWEN, qwen)]


def settings_for(port: int, device: str, size: Size, policy: str) -> Any:
    from predictors.settings import (
        ClusterSettings,
        ComputeSettings,
        FluxSettings,
        QwenVLSettings,
        ServerSettings,
        Settings,
        SharingSettings,
    )

    side, is_full = f"{size.side}x{size.side}", size is FULL
    return Settings(
        server=ServerSettings(
            port=port, grpc_port=-1, access_log=False, log_level="warning", prepare_threads=8
        ),
        compute=ComputeSettings(device=device),
        cluster=ClusterSettings(events="off"),
        sharing=SharingSettings(policy=policy),
        flux=FluxSettings(
            sizes=side, default_size=side, tiers=",".join(size.tiers), slots=1, preview="vae",
            edits="off", memory_fraction=0.4 if is_full else 0.0,
        ),
        qwen_vl=QwenVLSettings(
            slots=CLIENTS, max_context=4096, max_pixels=2**18, films="off",
            memory_fraction=0.25 if is_full else 0.0,
        ),
    )  # fmt: skip


def report(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Print the table and the goals' lines; returns the goals."""
    lines, goals = [HEAD], []
    for name, row in found.items():
        if not isinstance(row, dict) or "itl_ms_p50" not in row:
            continue
        policy, _, tier = name.partition(", ")
        figures = [row[key] for key in ("itl_ms_p50", "itl_ms_p99", "itl_ms_max", "texts_per_s")]
        shown = [*figures, row.get("picture_s"), row.get("picture_ratio")]
        lines.append((policy, tier, *("" if x is None else f"{x:.4g}" for x in shown)))
        if policy == "turns" and tier in GOAL_TIERS:
            for key, goal in GOALS.items():
                result = goal.result(row[key])
                goals.append(result | {"what": f"{tier}: {result['what']}"})
    print(columns(lines))
    for goal in goals:
        print(f"{goal['what']}: {goal['measured']:.4g}, at most {goal['limit']:g}: {goal['held']}")
    return goals


def measure(asked: argparse.Namespace) -> int:
    """Serve, measure on a thread, write the file; returns the exit code."""
    import torch

    from benchmarks.common.machine import machine
    from predictors.operators.serve import serve_models

    size = TOY if asked.toy else FULL
    device = asked.device or ("cpu" if asked.toy else "cuda:0")
    if device != "cpu":
        torch.cuda.init()
    run = BenchmarkRun(asked.out, asked.budget, machine=machine(device=device), clients=CLIENTS)
    embedded = [(FLUX, paths.SHAPES_FLUX), (QWEN, paths.SHAPES_QWEN_VL)]
    named = embedded if asked.toy else write_folders(asked.folder, device)
    (port,) = free_ports(1)
    models: dict[str, Any] = {}

    def make(name: str, folder: Path, settings: Any, workers: Any) -> Any:
        models[name] = build(name, folder, settings, workers, is_toy=asked.toy)
        return models[name]

    policies = POLICIES if asked.policy is None else (asked.policy,)
    driver = threading.Thread(target=Driver(port, size, run, models, policies), daemon=True)
    driver.start()
    served: Callable[..., int] = serve_models
    settings = settings_for(port, device, size, asked.policy or "turns")
    code = served(named, make, settings, None, os.environ)
    driver.join(PATIENCE_S)
    goals = report(run.found)
    write_json(asked.out, run.found | ({} if asked.toy else {"goals": goals}))
    return code or run.end()


def results_of(asked: argparse.Namespace) -> Path:
    """The file of a run; one policy alone has its own."""
    name = "colocated" if asked.policy is None else f"colocated_{asked.policy}"
    return (paths.SCRATCH if asked.toy else paths.RESULTS) / f"{name}.json"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.colocated", description=__doc__)
    parser.add_argument("--toy", action="store_true", help="the embedded checkpoints")
    parser.add_argument("--device", help="cuda:0, cpu, ...")
    parser.add_argument("--budget", type=float, default=285.0, help="seconds of the whole run")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/colocated"))
    parser.add_argument("--policy", choices=POLICIES, help="measure this one alone")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    asked.out = asked.out or results_of(asked)
    return measure(asked)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
