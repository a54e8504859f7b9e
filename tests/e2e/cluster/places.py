"""Where the test cluster lies on this machine: its cache, its run folder, its logs, and whether the
disk can hold them.

What is worth keeping outlives a clone (`VISION_PREDICTORS_CACHE`, else the user's cache folder);
what one cluster makes is gone after `down`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
RUN = Path("/run/vision-predictors-e2e")
"""Sockets, kubeconfigs and certificates of the one cluster that a machine can have up."""

GIGABYTE = 10**9


class ClusterError(Exception):
    """A failure that a person can do something about, in a sentence."""


def cache(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the e2e suite in the machine's cache."""
    base = environ.get("VISION_PREDICTORS_CACHE")
    if not base:
        home = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        base = str(Path(home) / "vision-predictors")
    return Path(base).absolute() / "e2e"


def logs(environ: Mapping[str, str] = os.environ) -> Path:
    """Where every log of a run ends up: `E2E_OUT`, else `out/e2e` of this clone."""
    return Path(environ.get("E2E_OUT") or ROOT / "out" / "e2e").absolute()


@dataclass(frozen=True)
class Site:
    """The folders of one cluster, written down in its run folder for every later command."""

    run: Path
    state: Path  # on disk, gone after `down`: etcd, volumes of pods
    images: Path  # on disk, kept: containerd's root
    bin: Path
    out: Path

    @property
    def config(self) -> Path:
        """The folder of the files that the components read."""
        return self.run / "config"

    @property
    def certificates(self) -> Path:
        """Keys and certificates of the API server and of everything that serves TLS."""
        return self.run / "certificates"

    @property
    def containerd(self) -> Path:
        """containerd's socket."""
        return self.run / "containerd.sock"

    @property
    def control(self) -> Path:
        """The supervisor's socket."""
        return self.run / "control.sock"

    @property
    def log_folder(self) -> Path:
        """One log per component."""
        return self.out / "cluster"

    def kubeconfig(self, identity: str = "admin") -> Path:
        """How one identity reaches the API server."""
        return self.config / f"{identity}.kubeconfig"

    def save(self) -> None:
        """Write the folders down for later commands."""
        folders = {name: str(path) for name, path in asdict(self).items()}
        (self.run / "site.json").write_text(json.dumps(folders))


def new_site(bin_folder: Path) -> Site:
    """The folders of a cluster that is about to be made."""
    return Site(RUN, cache() / "state", cache() / "containerd", bin_folder, logs())


def saved_site(run: Path = RUN) -> Site:
    """The cluster that is there; raises `ClusterError` when none is."""
    try:
        folders = json.loads((run / "site.json").read_text())
    except FileNotFoundError:
        raise ClusterError("no cluster is up: `python -m tests.e2e.cluster up` first") from None
    return Site(**{name: Path(path) for name, path in folders.items()})


def check_free_disk(folder: Path, needed_bytes: float, purpose: str) -> None:
    """Say what `purpose` needs and the disk has; raises `ClusterError` when that is too little."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    sentence = (
        f"{purpose} needs {needed_bytes / GIGABYTE:.1f} GB in {folder}, "
        f"{free / GIGABYTE:.1f} GB are free"
    )
    print(sentence, flush=True)
    if free < needed_bytes:
        raise ClusterError(sentence)


@contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Hold a lock of this machine; a second holder waits."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
