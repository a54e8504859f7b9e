"""Where the images of the e2e suite lie on this machine, and whether the disk can hold them.

All of it outlives a clone: `VISION_PREDICTORS_CACHE`, else the user's cache folder.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
"""The repository: the build's folder."""

SERVER = "localhost/vision-predictors:e2e"
FAULTY = "localhost/vision-predictors:faulty"
BROKEN = "localhost/vision-predictors:broken"
STORAGE = "localhost/vision-predictors-storage:e2e"

GIGABYTE = 10**9


class CannotBuild(Exception):
    """The suite can't run here; the message says what is missing."""


def cache() -> Path:
    """The folder of the e2e suite in the machine's cache, made when it is not there."""
    base = os.environ.get("VISION_PREDICTORS_CACHE")
    if not base:
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        base = str(Path(home) / "vision-predictors")
    folder = Path(base) / "e2e"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def storage() -> Path:
    """Buildah's images and layers."""
    return cache() / "storage"


def layout() -> Path:
    """The OCI layout from which a cluster's containerd imports."""
    return cache() / "images" / "oci"


def check_free_disk(needed_gb: float, purpose: str, folder: Path | None = None) -> None:
    """Say what the disk has and `purpose` needs; raises `CannotBuild` when that is too little.

    The disk is that of `folder`, else of the machine's cache.
    """
    where = folder or cache()
    free_gb = shutil.disk_usage(where).free / GIGABYTE
    sentence = f"{purpose} needs {needed_gb:.0f} GB in {where}, {free_gb:.0f} GB are free"
    print(sentence, flush=True)
    if free_gb < needed_gb:
        raise CannotBuild(sentence)
