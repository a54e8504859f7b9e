"""Compares the files of a checkpoint folder with recorded digests: those in `model.sha256`, or
those that Hugging Face's hub leaves beside the files that it delivers.

Files are hashed in threads while the process does other things, such as importing torch. Messages
name files inside the folder, never its path.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from predictors.compute.checkpoint.folder import check_file, reading, shown
from predictors.compute.checkpoint.headers import weight_files
from predictors.compute.checkpoint.layout import INDEX
from predictors.errors import EngineFailed
from predictors.settings import ComputeSettings

log = logging.getLogger(__name__)

MANIFEST = "model.sha256"
SETTING = "PREDICTORS_COMPUTE_VERIFY"
READABLE = frozenset({".json", ".txt", ".model", ".jinja"})
"""Ends of the names of configs, tokenizers and templates."""
HUB_RECORDS = Path(".cache/huggingface/download")
MAX_MANIFEST_BYTES = 2**20
MAX_THREADS = 8
GIT_DIGITS = 40  # of git's name of a blob
SHOWN_DIGITS = 12  # of a digest, in messages
CHUNK_BYTES = 2**20

# `sha256sum` writes two spaces, or one and `*`; without bounds on the name the line is linear
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Digests by the files' names inside the folder. `source` is what they were read from."""

    source: str
    digests: Mapping[str, str]
    """64 hexadecimal digits are SHA-256; 40 are git's name of a blob, SHA-1."""

    def below(self, folder: str) -> Manifest:
        """That of a folder in this one."""
        start = f"{folder}/"
        inside = {n.removeprefix(start): d for n, d in self.digests.items() if n.startswith(start)}
        return Manifest(self.source, inside)


@dataclass(frozen=True, slots=True)
class VerifiedFolder:
    """A folder whose files are what its manifest lists; `seconds` by the clock."""

    folder: str
    source: str
    num_files: int
    num_bytes: int
    seconds: float


class Verification:
    """The comparison of folders with their manifests, in threads, from now until `finish`.

    `folders` are models' folders and those of parts that replace their own. Raises `EngineFailed`
    for a folder without a manifest if `settings.verify` is `on`, for a manifest that can't be read,
    for a file that is read and not listed, and for a listed one that is missing.
    """

    def __init__(
        self, folders: Iterable[tuple[Path, Mapping[str, Path]]], settings: ComputeSettings
    ) -> None:
        self._begun: list[_Comparison] = []
        if settings.verify == "off":
            return
        pool = ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))), "verify")
        try:
            for folder, parts in folders:
                self._begin(folder, settings, pool, without=parts)
                for part in parts.values():
                    self._begin(part, settings, pool)
        except EngineFailed:
            pool.shutdown(wait=False, cancel_futures=True)  # the process is about to end
            raise
        pool.shutdown(wait=False)

    def _begin(
        self,
        folder: Path,
        settings: ComputeSettings,
        pool: ThreadPoolExecutor,
        without: Collection[str] = (),
    ) -> None:
        with reading(f"the files of {folder.name}"):
            manifest = find_manifest(folder, with_hubs=settings.verify == "on")
            if manifest is not None:
                names = listed_files(folder, manifest, settings.weights_variant, without)
                names.sort(key=lambda name: -(folder / name).stat().st_size)  # the longest first
                self._begun.append(_Comparison(folder, manifest, names, pool))
        if manifest is None and settings.verify == "on":
            raise EngineFailed(
                f"{folder.name} has no {MANIFEST} and no records of a hub, and {SETTING} is on: "
                "write one with sha256sum (docs/checkpoints.md), or set it to auto"
            )

    def finish(self) -> list[VerifiedFolder]:
        """Wait until all files are compared; returns the folders that have a manifest. Raises
        `EngineFailed` naming a file that differs, with both digests."""
        return [comparison.finish() for comparison in self._begun]


def verify_folders(
    folders: Iterable[tuple[Path, Mapping[str, Path]]], settings: ComputeSettings
) -> list[VerifiedFolder]:
    """Compare folders with their manifests, and wait for it: see `Verification`."""
    return Verification(folders, settings).finish()


class _Comparison:
    """One folder's files while they are hashed."""

    def __init__(
        self, folder: Path, manifest: Manifest, names: Sequence[str], pool: ThreadPoolExecutor
    ) -> None:
        self._folder = folder.name
        self._manifest = manifest
        self._started = time.monotonic()
        self._hashed: dict[str, Future[tuple[str, int]]] = {}
        for name in names:
            is_blob = len(manifest.digests[name]) == GIT_DIGITS
            self._hashed[name] = pool.submit(_hash, folder / name, is_blob=is_blob)

    def finish(self) -> VerifiedFolder:
        source, digests = self._manifest.source, self._manifest.digests
        with reading(f"a file of {self._folder}"):
            found = {name: done.result() for name, done in self._hashed.items()}
        if wrong := sorted(name for name in found if found[name][0] != digests[name]):
            here, listed = found[wrong[0]][0], digests[wrong[0]]
            more = f", and {len(wrong) - 1} more files differ" if len(wrong) > 1 else ""
            raise EngineFailed(
                f"{wrong[0]} is damaged or another file: its digest begins with "
                f"{here[:SHOWN_DIGITS]}, {source} says {listed[:SHOWN_DIGITS]}{more}; fetch it "
                f"again, or write a new {MANIFEST} if the change is meant"
            )
        num_bytes, seconds = sum(n for _, n in found.values()), time.monotonic() - self._started
        message = "%s: %d files (%.1f MiB) are as %s says; compared after %.2f s"
        log.info(message, self._folder, len(found), num_bytes / 2**20, source, seconds)
        return VerifiedFolder(self._folder, source, len(found), num_bytes, seconds)


# -- what is listed --------------------------------------------------------------------------------
def find_manifest(folder: Path, *, with_hubs: bool = False) -> Manifest | None:
    """The digests recorded for a folder: in `model.sha256`, else `with_hubs` by a hub. A part of a
    pipeline may be listed by the pipeline. None if there are none."""
    for find in (_own_manifest, _hub_records, _hub_links) if with_hubs else (_own_manifest,):
        found = find(folder)
        if found is None and (folder.parent / INDEX).is_file() and find is not _hub_links:
            whole = find(folder.parent)
            found = None if whole is None else whole.below(folder.name)
        if found is not None and found.digests:
            return found
    return None


def listed_files(
    folder: Path, manifest: Manifest, variant: str, without: Collection[str] = ()
) -> list[str]:
    """The files to compare: weights that are read, configs, tokenizers and templates, also of the
    folders one level below.

    Raises `EngineFailed` for one that is not listed (unless only weights are listed), and for a
    listed config that is missing.
    """
    places = [folder, *(p for p in sorted(folder.iterdir()) if _is_part(p, without))]
    weights: set[str] = set()
    others: set[str] = set()
    for place in places:
        with suppress(EngineFailed):  # no weights, or a part that is not served
            weights |= {_name(folder, file) for file in weight_files(place, variant)}
        others |= {_name(folder, f) for f in place.iterdir() if _is_readable(f) and f.is_file()}
    inside = [""] + [f"{place.name}/" for place in places[1:]]
    listed = {n for n in manifest.digests if n[: n.rfind("/") + 1] in inside}
    listed_others = {n for n in listed if _is_readable(Path(n))}
    if not any(".safetensors" not in name for name in listed_others):
        others = {name for name in others if name in listed}
    if unlisted := sorted((weights | others) - listed):
        raise EngineFailed(
            f"{unlisted[0]} is not listed in {manifest.source}: take it out of the folder, or "
            f"write a new {MANIFEST} if it is meant"
        )
    missing = sorted(n for n in listed_others - others if ".safetensors" not in n)
    if missing:
        raise EngineFailed(
            f"{missing[0]} is missing, which {manifest.source} lists; fetch the checkpoint again"
        )
    return sorted(weights | others)


def _is_part(path: Path, without: Collection[str]) -> bool:
    return path.is_dir() and path.name not in without and not path.name.startswith(".")


def _is_readable(file: Path) -> bool:
    return file.suffix in READABLE and not file.name.startswith(".")


def _name(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix()


# -- where digests are recorded --------------------------------------------------------------------
def _own_manifest(folder: Path) -> Manifest | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    check_file(path, MANIFEST)
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise EngineFailed(f"{MANIFEST} has more than {MAX_MANIFEST_BYTES} bytes")
    digests: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None or ".." in match[2].split("/") or match[2].startswith("/"):
            raise EngineFailed(
                f"line {number} of {MANIFEST} is {shown(line)}; a line has 64 hexadecimal digits, "
                "two spaces and the name of a file in this folder, as sha256sum writes it"
            )
        digest = match[1].lower()
        if digests.setdefault(match[2], digest) != digest:
            raise EngineFailed(f"{MANIFEST} lists {shown(match[2])} twice, with two digests")
    if not digests:
        raise EngineFailed(f"{MANIFEST} lists no file; write it again")
    return Manifest(MANIFEST, digests)


def _hub_records(folder: Path) -> Manifest | None:
    """From the notes of `hf download --local-dir`, a file each: the second line is the hub's ETag,
    which is the SHA-256 of a large file, and git's name of a small one."""
    records = folder / HUB_RECORDS
    digests: dict[str, str] = {}
    for file in sorted([*records.glob("*.metadata"), *records.glob("*/*.metadata")]):
        lines = file.read_text("utf-8", "replace")[:1000].splitlines()
        etag = lines[1].strip().lower() if len(lines) > 1 else ""
        if not _DIGEST.fullmatch(etag):
            log.info("%s: the hub's records hold no digests and are not used", folder.name)
            return None
        digests[_name(records, file).removesuffix(".metadata")] = etag
    return Manifest("the hub's records", digests) if digests else None


def _hub_links(folder: Path) -> Manifest | None:
    """A snapshot in a hub's cache is of links to `blobs/ETAG`."""
    digests = {}
    for place in (folder, *(each for each in sorted(folder.iterdir()) if each.is_dir())):
        for file in sorted(place.iterdir()):
            target = Path(os.readlink(file)) if file.is_symlink() else file
            if target.parent.name == "blobs" and _DIGEST.fullmatch(target.name):
                digests[_name(folder, file)] = target.name
    return Manifest("the hub's cache", digests) if digests else None


# -- digests ---------------------------------------------------------------------------------------
def _hash(file: Path, *, is_blob: bool) -> tuple[str, int]:
    """The digest of a file and its bytes. `hashlib` releases the interpreter's lock meanwhile."""
    size = file.stat().st_size
    made = hashlib.sha1(usedforsecurity=False) if is_blob else hashlib.sha256()
    if is_blob:
        made.update(b"blob %d\0" % size)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(buffer):
            made.update(buffer[:count])
    return made.hexdigest(), size
