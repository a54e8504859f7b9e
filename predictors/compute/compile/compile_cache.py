"""Compiled code that outlives the process: where Triton and Inductor keep theirs, and one bundle
per model. Knows neither models nor what was compiled.

What lies in such a folder is executed, so one that anybody may write is not used, and a server
needs no right to write it: from a folder that it can only read it works on a private copy. Whatever
is amiss is a warning in the log and a cold start, never a failure.

    <compute.cache_dir>/<GPU or cpu>-<hash of versions and machine>/
        triton/  inductor/      the libraries' own, in their own layout
        <hash>.bundle           torch's artifacts of one checkpoint under one engine config

Old subfolders are never removed; an operator may at any time.
"""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Mapping, MutableMapping
from pathlib import Path, PurePath

import torch

log = logging.getLogger(__name__)

MAX_BYTES = 2 * 2**30
"""Of one bundle, and of a folder that is copied."""
VARIABLES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""What the libraries look at whenever they look for their folder, and the folder's name here."""
MAGIC = b"predictors bundle 1"

# the libraries know one folder per process, whichever room asks first
_lock = threading.Lock()
_decided: dict[str, Path | None] = {}


def keep_compiled_code(
    cache_dir: str, device: torch.device, environ: MutableMapping[str, str]
) -> Path | None:
    """Make Triton and Inductor keep their work under `cache_dir`, once per process and before the
    first kernel; returns the folder for bundles. Any thread.

    They look into the process's environment, which only the composition root touches: it hands
    over `environ`. Empty leaves everything as it is, and a variable that the operator set himself
    wins. None where nothing is kept, also because the folder can't be used.
    """
    if not cache_dir:
        return None
    with _lock:
        if not _decided:
            folder = machine_folder(Path(cache_dir).absolute(), machine_key(device))
            if folder is not None:
                _point_libraries(folder, environ)
            _decided[cache_dir] = folder
        elif cache_dir not in _decided:
            log.warning("compiled code goes to %s, not to %s", next(iter(_decided)), cache_dir)
        return next(iter(_decided.values()))


def kept_in() -> Path | None:
    """The folder that `keep_compiled_code` has decided on, or None."""
    with _lock:
        return next(iter(_decided.values()), None)


def keeps_new_code() -> bool:
    """Whether that folder takes what is compiled from now on, for other processes too."""
    folder = kept_in()
    return folder is not None and _is_writable(folder)


def machine_key(device: torch.device) -> str:
    """A folder's name for what decides whether compiled code may run: versions, CPU, GPU.

    What Triton and Inductor hash themselves (sources, shapes, options) is not in it.
    """
    gpu, capability = "cpu", ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu, capability = properties.name, f"{properties.major}.{properties.minor}"
    facts = {
        "python": sys.implementation.cache_tag,
        "torch": torch.__version__,
        "triton": _version_of("triton"),
        "cuda": torch.version.cuda,
        "gpu": [gpu, capability],
        "cpu": [platform.machine(), torch.backends.cpu.get_cpu_capability(), _cpu_flags()],
    }
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}-{digest(facts)[:16]}"


def machine_folder(root: Path, key: str) -> Path | None:
    """`root`/`key`, made if need be; None, and a warning, where it can't be used."""
    folder = root / key
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        if not folder.is_dir():
            log.warning("no compiled code is kept: %s can't be made: %s", folder, error)
            return None
    for each in (root, folder):
        if each.stat().st_mode & stat.S_IWOTH:
            log.warning("no compiled code is kept: anybody may write %s", each)
            return None
    return folder


def digest(parts: object) -> str:
    """SHA-256 in hex of plain values, mappings and dataclasses, equal in every process.

    A path counts for nothing: where a checkpoint lies says nothing about it. Raises `TypeError` for
    anything whose text might differ between two processes.
    """
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


class Bundle:
    """What torch.compile has made for one model, in one file that any number of processes may read.
    Written whole or not at all, so several writers do no harm; the last one wins.

    It carries Inductor's work to a machine that has the file and not Inductor's folder. Triton
    kernels that a model launches itself are not in it. torch collects per process: where two rooms
    compile in one, each one's file holds both.
    """

    def __init__(self, folder: Path | None, parts: object) -> None:
        """`parts` is everything of checkpoint and engine that decides what is compiled, see
        `digest`. Without a folder there is never a file."""
        self._key = digest(parts)
        self._file = None if folder is None else folder / f"{self._key[:32]}.bundle"

    @property
    def exists(self) -> bool:
        """Whether there is a file, of whatever worth."""
        return self._file is not None and self._file.exists()

    def load(self) -> bool:
        """Hand the file to torch, before anything is compiled; whether torch took it."""
        if self._file is None or not self.exists:
            return False
        try:
            found = torch.compiler.load_cache_artifacts(self._read(self._file))
        # the last two are torch's, for bytes that another version wrote
        except (OSError, ValueError, RuntimeError, AssertionError) as error:
            log.warning("%s is not used: %s", self._file, error)
            return False
        if found is None:
            log.warning("%s is not used: torch can't read it", self._file)
        return found is not None

    def save(self) -> bool:
        """Write what was compiled until now, or came from disk; whether there is a new file."""
        if self._file is None or "torch._dynamo" not in sys.modules:
            return False
        from torch._dynamo.convert_frame import compile_lock

        with compile_lock:  # another engine's thread may be compiling
            artifacts = torch.compiler.save_cache_artifacts()
        if artifacts is None:
            return False
        content = artifacts[0]
        if len(content) > MAX_BYTES:
            log.warning("%s is not written: %d bytes are too many", self._file, len(content))
            return False
        try:
            _write(self._file, self._head(content) + content)
        except OSError as error:
            log.warning("%s is not written: %s", self._file, error)
            return False
        return True

    def _read(self, file: Path) -> bytes:
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_mode & stat.S_IWOTH:
                raise ValueError("anybody may write it")
            if status.st_size > MAX_BYTES:
                raise ValueError(f"{status.st_size} bytes are too many")
            head = b"".join(opened.readline(80) for _ in range(3))
            content = opened.read(MAX_BYTES)
        if head != self._head(content):
            raise ValueError("it is broken, or another model's")
        return content

    def _head(self, content: bytes) -> bytes:
        ours = (MAGIC, self._key.encode(), hashlib.sha256(content).hexdigest().encode())
        return b"".join(line + b"\n" for line in ours)


def _write(file: Path, content: bytes) -> None:
    """All of it or nothing, readable by everybody."""
    descriptor, name = tempfile.mkstemp(prefix=".", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            os.fchmod(descriptor, 0o644)
        os.replace(name, file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _point_libraries(folder: Path, environ: MutableMapping[str, str]) -> None:
    place = folder if _is_writable(folder) else _private_copy(folder)
    for variable, leaf in VARIABLES.items():
        own = environ.get(variable, "")
        if own and not _is_torchs_default(own):
            log.info("%s=%s was set and stays", variable, own)
            continue
        environ[variable] = str(place / leaf)
    log.info("compiled code is kept in %s", place)


def _is_torchs_default(value: str) -> bool:
    # importing Inductor sets the variable, so it says nothing about the operator
    library = sys.modules.get("torch._inductor.runtime.cache_dir_utils")
    return library is not None and value == library.default_cache_dir()


def _is_writable(folder: Path) -> bool:
    """Whether both libraries could write there. Permission bits don't tell: mounts, other users."""
    try:
        for leaf in VARIABLES.values():
            (folder / leaf).mkdir(mode=0o755, exist_ok=True)
            tempfile.TemporaryFile(dir=folder / leaf).close()
    except OSError:
        return False
    return True


def _private_copy(folder: Path) -> Path:
    """A folder of this process alone, with what `folder` holds; empty if that can't be copied."""
    private = Path(tempfile.mkdtemp(prefix="predictors-compiled-"))
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    try:
        files = [
            f for leaf in VARIABLES.values() for f in (folder / leaf).rglob("*") if _is_kept(f)
        ]
        size = sum(file.stat().st_size for file in files)
        if size > MAX_BYTES:
            log.warning("%s can't be written, and %d bytes are not copied", folder, size)
            return private
        for file in files:
            copy = private / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)  # not its mode: the libraries write beside and over it
    except OSError as error:
        log.warning("%s can't be written, and not be copied: %s", folder, error)
        for leaf in VARIABLES.values():
            shutil.rmtree(private / leaf, ignore_errors=True)
    _lead_home(private / "triton")
    return private


def _is_kept(file: Path) -> bool:
    return file.is_file() and not file.is_symlink() and file.suffix != ".lock"


def _lead_home(triton: Path) -> None:
    """Triton lists a kernel's files by their full path: let the lists name the copies."""
    for group in triton.glob("*/__grp__*.json"):
        try:
            names = list(json.loads(group.read_text(encoding="utf-8"))["child_paths"])
        except (OSError, ValueError, KeyError, TypeError):
            group.unlink()  # Triton would not get over it
            continue
        paths = {name: str(group.parent / name) for name in names}
        group.write_text(json.dumps({"child_paths": paths}), encoding="utf-8")


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_flags() -> str:
    # Inductor compiles for the very CPU it runs on; a like name with fewer flags would not do
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, PurePath):
        return None
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no text that is equal in every process")
