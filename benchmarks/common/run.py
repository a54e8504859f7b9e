"""The run loop of a benchmark: named sections one after the other within a budget of seconds, with
everything found so far in one JSON file. A section without time left is listed in `left_out`; one
that raises is listed in `failed`, and the next ones run. The file is written after each section, so
that an interrupted run leaves its results.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


class SectionFailed(Exception):
    """A section that failed but measured something first: `found` is kept."""

    def __init__(self, message: str, found: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.found = found


class BenchmarkRun:
    def __init__(self, out: Path, budget_s: float, **about: Any) -> None:
        self.out = out
        self._budget_s = budget_s
        self._began = time.monotonic()
        self.found: dict[str, Any] = {**about, "took_s": {}, "left_out": [], "failed": {}}

    @property
    def left_s(self) -> float:
        return self._budget_s - (time.monotonic() - self._began)

    def section(self, name: str, work: Callable[[], Any], least_s: float = 0.0) -> None:
        """Run `work` if `least_s` seconds are left; its result, unless None, is kept as `name`."""
        if self.left_s < least_s:
            print(f"{name}: left out, {self._budget_s:.0f} s are over", flush=True)
            self.found["left_out"].append(name)
            return
        print(f"{name}:", flush=True)
        began = time.monotonic()
        try:
            found = work()
        except SectionFailed as error:
            self.found["failed"][name] = str(error)
            found = error.found
        except Exception as error:  # noqa: BLE001 - hours of a lent card are not lost to one section
            traceback.print_exc()
            self.found["failed"][name] = f"{type(error).__name__}: {error}"
            found = None
        if found is not None:
            self.found[name] = found
        self.found["took_s"][name] = round(time.monotonic() - began, 1)
        print(f"{name}: {self.found['took_s'][name]} s", flush=True)
        self.save()

    def results(self) -> dict[str, Any]:
        return self.found

    def save(self) -> None:
        write_json(self.out, self.results())

    def end(self) -> int:
        """Say what failed and where the results are; returns the process's status."""
        for name, error in self.found["failed"].items():
            print(f"FAILED {name}: {error}")
        print(f"\nwritten to {self.out}")
        return 1 if self.found["failed"] else 0


class PartialResults:
    """Figures of a part that runs in a process of its own, written to a file after each one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Any] = {}

    def add(self, name: str, value: Any) -> None:
        """Keep a figure, print it and write the file."""
        self.found[name] = value
        print(f"  {name}: {json.dumps(rounded(value))}", flush=True)
        self._path.write_text(json.dumps(self.found))

    def attempt(self, name: str, work: Callable[[], Any]) -> None:
        """Add what `work` returns. If it raises, add the error and go on."""
        try:
            self.add(name, work())
        except Exception as error:  # noqa: BLE001 - a lent card is not lost to one figure
            self.add(f"{name} failed", repr(error)[:500])


def run_parser(
    prog: str, description: str | None, sections: Collection[str], default: Sequence[str]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=description)
    add = parser.add_argument
    add("--toy", action="store_true", help="the embedded checkpoint's size, on any device")
    add("--only", default=",".join(default), help=f"of {', '.join(sections)}")
    add("--budget", type=float, default=540.0, help="seconds after which no section begins")
    add("--device", help="cuda:0, cpu, ...")
    add("--out", type=Path, help="the JSON file")
    parser.set_defaults(sections=sections)
    return parser


def read_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str], results: Path, toy_results: Path
) -> argparse.Namespace:
    """Parse and check. Fills `device` and `out`; `names` are the sections of `--only`."""
    asked = parser.parse_args(arguments)
    asked.names = [name.strip() for name in asked.only.split(",") if name.strip()]
    if unknown := set(asked.names) - set(asked.sections):
        known = ", ".join(asked.sections)
        parser.error(f"--only takes {known}, not {', '.join(sorted(unknown))}")
    asked.device = asked.device or ("cpu" if asked.toy else "cuda:0")
    if asked.device == "cpu" and not asked.toy:
        parser.error("full size needs a GPU; there is --toy")
    asked.out = asked.out or (toy_results if asked.toy else results)
    return asked


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Replace the file as a whole. Dataclasses are written as objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(results, indent=1, default=_plain) + "\n")
    part.replace(path)


def plain(results: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(results, default=_plain))
    return found


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not written to JSON")


def rounded(value: Any) -> Any:
    """Floats with four significant digits, also inside lists and dicts."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value
