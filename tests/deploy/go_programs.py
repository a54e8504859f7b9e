"""Programs of Go modules that tests ask and the test cluster does not need, built once into the
machine's cache, where a build of the cluster never removes them.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from tests.e2e.cluster.building import find_go
from tests.e2e.cluster.places import ClusterError, cache, one_at_a_time


def installed(package: str, version: str) -> Path:
    """The program of a package, such as `example.com/cmd/name`, at a version of its module; raises
    `ClusterError` where it is not there and Go or its modules are missing.
    """
    name = package.rpartition("/")[2]
    found = cache() / "programs" / f"{name}-{version}"
    with one_at_a_time("programs"):
        if found.exists():
            return found
        found.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=found.parent) as beside:
            done = subprocess.run(
                [find_go(), "install", "-trimpath", "-ldflags=-s -w", f"{package}@{version}"],
                env={**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOBIN": beside},
                capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode:
                raise ClusterError(f"{name} {version} can't be built: {done.stderr[-2000:]}")
            (Path(beside) / name).rename(found)
    return found
