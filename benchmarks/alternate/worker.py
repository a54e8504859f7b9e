"""One source tree's code, loaded once and timed on demand: `benchmarks.alternate` starts this file
in both trees. It works with the present layout of benchmarks/ and with the one before it
(`benchmarks/flux_ours.py`).

`python -P worker.py KIND OPTIONS`, with the tree as working directory and in PYTHONPATH, prints one
JSON line when it is ready. For each JSON line on standard input it prints one line of figures.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

Timed = Callable[[Any], Mapping[str, float]]

SEED = 2026
SHELLS = {
    "transformer": "transformer",
    "vae": "vae",
    "text_encoder": "clip",
    "text_encoder_2": "t5",
}
"""Folder of a FLUX checkpoint -> its name in `random_weights.shells`."""


def module_of(*names: str) -> Any:
    for name in names:
        if Path(*name.split(".")).with_suffix(".py").exists():
            return import_module(name)
    raise ModuleNotFoundError(f"none of {', '.join(names)} in {Path.cwd()}")


class PartByPart:
    """Random FLUX weights, made when a part is loaded and freed after it, so that two engines of
    full size fit on one card. Has what `Ours` reads of `random_weights.Models`."""

    def __init__(self, weights: Any, folder: Path, placement: Any) -> None:
        self._weights = weights
        self._placement = placement
        self.folder = folder

    @contextmanager
    def opened(self, part: str) -> Iterator[Any]:
        import torch

        generator = torch.Generator(self._placement.device).manual_seed(SEED)
        module = self._weights.shells(self.folder)[SHELLS[part]]
        fill = getattr(self._weights, "fill", None) or self._weights._fill
        fill(module, self._placement.dtype, generator)
        yield self._weights.Stored(dict(module.state_dict()))


def flux(options: Mapping[str, Any]) -> Timed:
    """FLUX.1-dev's engine. A command is a tier's name."""
    import torch

    ours = module_of("benchmarks.flux.ours", "benchmarks.flux_ours")
    weights = module_of("benchmarks.flux.random_weights", "benchmarks.flux_random")
    cases = module_of("benchmarks.flux.cases", "benchmarks.flux_cases")
    width, height = options["size"]
    case = cases.Case("dev", width, height, options["steps"])
    placement = ours.placement_for(torch.device(options["device"]))
    changes = weights.TOY if options["is_small"] else weights.FULL
    with tempfile.TemporaryDirectory() as folder:
        configs = weights.write_folder(Path(folder) / "dev", changes)
        settings = ours.settings_for(f"{width}x{height}", ",".join(options["tiers"]))
        engine = ours.Ours(PartByPart(weights, configs, placement), placement, settings)
        engine.open()
    if placement.is_cuda:
        torch.cuda.empty_cache()

    def timed(tier: str) -> Mapping[str, float]:
        return {"s": engine.draw(case, tier).seconds}

    return timed


def host(options: Mapping[str, Any]) -> Timed:
    """The host around a no-op engine. A command is the number of a scenario."""
    overhead = module_of("benchmarks.serving.host_overhead", "benchmarks.host_overhead")

    def timed(number: int) -> Mapping[str, float]:
        found = overhead.measure_scenario(overhead.SCENARIOS[number], **options)
        return {f"us, {waiting} waiting": us for waiting, us in found["us_per_step"].items()}

    return timed


KINDS: Mapping[str, Callable[[Mapping[str, Any]], Timed]] = {"flux": flux, "host": host}


def main(kind: str, options: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard output
    timed = KINDS[kind](json.loads(options))
    import predictors

    tree = Path(str(predictors.__file__)).resolve().parents[1]
    print(json.dumps({"tree": str(tree)}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(dict(timed(json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
