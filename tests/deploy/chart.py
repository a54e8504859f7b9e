"""Renders the chart by the real `helm template`: no cluster, no network.

Helm is the one on PATH, or the newest that `python -m tests.e2e.cluster build` has left in the
machine's cache. Where there is none the tests fail and say so.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts/predictors"
OVERLAYS = [CHART / "values-openshift.yaml"]  # no models: for use over a profile
PROFILES = sorted(path for path in CHART.glob("values-*.yaml") if path not in OVERLAYS)
CASES = sorted((CHART / "ci").glob("*-values.yaml"))
KUBERNETES = "1.34.0"
NAMESPACE = "demo"

Object = dict[str, Any]


def binary(name: str) -> str:
    """Path of `helm` or `kubectl`; raises `FileNotFoundError` with what to do."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    ours = Path(os.environ.get("VISION_PREDICTORS_CACHE") or Path(cache) / "vision-predictors")
    built = sorted(ours.glob(f"e2e/bin-*/{name}"), key=lambda path: path.stat().st_mtime)
    found = shutil.which(name) or (str(built[-1]) if built else None)
    if found is None:
        raise FileNotFoundError(
            f"{name} is neither on PATH nor in {ours}/e2e: `make test-deploy` builds it"
        )
    return found


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs helm and waits; the caller looks at the exit code."""
    return subprocess.run([binary("helm"), *words], capture_output=True, text=True, timeout=300)


def arguments(*values: str | Path, sets: tuple[str, ...] = ()) -> list[str]:
    """Flags for values files (a name without a folder is one of the chart's) and `key=JSON`."""
    files = [path if (path := Path(value)).is_absolute() else CHART / path for value in values]
    flags = [word for path in files for word in ("-f", str(path))]
    return flags + [word for each in sets for word in ("--set-json", each)]


@functools.cache
def template(*values: str | Path, sets: tuple[str, ...] = (), release: str = "predictors") -> str:
    """The rendered text; raises `ValueError` with Helm's message where it refuses."""
    done = helm(
        "template", release, str(CHART), "-n", NAMESPACE, "--kube-version", KUBERNETES,
        *arguments(*values, sets=sets),
    )  # fmt: skip
    if done.returncode:
        raise ValueError(done.stderr)
    return done.stdout


def render(
    *values: str | Path, sets: tuple[str, ...] = (), release: str = "predictors"
) -> list[Object]:
    """Every rendered object, hooks and tests included."""
    text = template(*values, sets=sets, release=release)
    return [each for each in yaml.safe_load_all(text) if each]


def refusal(*values: str | Path, sets: tuple[str, ...] = ()) -> str:
    """Helm's message; fails where it renders instead."""
    try:
        template(*values, sets=sets)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"not refused: {', '.join(map(str, (*values, *sets)))}")


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    """The objects of one kind, by name; fails on two of one name."""
    found = [each for each in objects if each["kind"] == kind]
    named = {each["metadata"]["name"]: each for each in found}
    assert len(named) == len(found), f"two {kind} of one name"
    return named


def environment(container: Object) -> dict[str, Any]:
    """Variables of a container by name: the value, or where it comes from; fails on a double."""
    listed = [(each["name"], each.get("value", each.get("valueFrom"))) for each in container["env"]]
    assert len(dict(listed)) == len(listed), "a variable is set twice"
    return dict(listed)
