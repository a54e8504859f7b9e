"""Seals Triton's kept kernels, and drops those that a crash, a full disk or a bad block has broken:
Triton itself would fail on them at every start.

A kernel is a folder of files. Its seal lists their digests, and is written once a start has used
them. Files appear whole, so an unsealed kernel that looks whole may be another process's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

SEAL = "seal.sha256"


def drop_broken(triton: Path) -> int:
    """Remove the kernels below `triton` that are broken; returns their number."""
    broken = [kernel for kernel in _kernels(triton) if not _is_whole(kernel)]
    for kernel in broken:
        shutil.rmtree(kernel, ignore_errors=True)
    if broken:
        log.warning("%d kept kernels are broken, and compiled again", len(broken))
    return len(broken)


def seal(triton: Path) -> None:
    """Seal the kernels below `triton` that have no seal."""
    for kernel in _kernels(triton):
        if not (kernel / SEAL).exists():
            with suppress(OSError):  # a full disk, or a folder that can't be written
                _seal(kernel)


def _seal(kernel: Path) -> None:
    lines = [f"{_digest(file)}  {file.name}\n" for file in _files(kernel)]
    draft = kernel / f".{SEAL}.{os.getpid()}"
    try:
        draft.write_text("".join(lines), encoding="utf-8")
        draft.replace(kernel / SEAL)
    finally:
        draft.unlink(missing_ok=True)


def _is_whole(kernel: Path) -> bool:
    try:
        if (kernel / SEAL).exists():
            lines = (kernel / SEAL).read_text(encoding="utf-8").splitlines()
            listed = [line.split("  ", 1) for line in lines]
            return bool(listed) and all(_digest(kernel / name) == want for want, name in listed)
        return all(_looks_whole(file) for file in _files(kernel))
    except FileNotFoundError:
        return not kernel.exists()  # another process dropped it
    except (OSError, ValueError):
        return False


def _looks_whole(file: Path) -> bool:
    if file.suffix == ".json":
        json.loads(file.read_text(encoding="utf-8"))
    return file.stat().st_size > 0


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _kernels(triton: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from (each for each in sorted(triton.iterdir()) if each.is_dir())


def _files(kernel: Path) -> list[Path]:
    """Files of a kernel, without seals, locks and what is still written."""
    return [
        file
        for file in sorted(kernel.iterdir())
        if file.is_file() and not file.name.startswith((".", SEAL)) and file.suffix != ".lock"
    ]
