"""Compiled code that is kept between starts: the folders of Triton and Inductor, and one bundle per
model.

The content is executed, so a folder that anyone may write is not used. A server needs no write
access: it works on a private copy of a folder that it can only read. Problems lead to a warning in
the log and a cold start, never to a failure.

    <compute.cache_dir>/<GPU or cpu>-<hash of versions and machine>/
        triton/  inductor/      the libraries' own, in their own layout
        <hash>.bundle           torch's artifacts of one checkpoint under one engine config
"""

from __future__ import annotations

import atexit
import dataclasses
import errno
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

from predictors.compute.compile.kept_kernels import drop_broken, seal

log = logging.getLogger(__name__)

MAX_BYTES = 2 * 2**30
"""Largest size of a bundle, and of a folder that is copied."""
NEEDED_BYTES = 32 * 2**20
"""Free space that a folder must have for new code."""
VARIABLES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""The environment variable of each library's folder, and the folder's name here."""
MAGIC = b"predictors bundle 1"

# each library has one folder per process: the first caller decides
_lock = threading.Lock()
_decided: dict[str, Path | None] = {}


def keep_compiled_code(
    cache_dir: str, device: torch.device, environ: MutableMapping[str, str]
) -> Path | None:
    """Make Triton and Inductor store their results under `cache_dir`; returns the folder for
    bundles, or None if nothing is stored. Any thread; must be called before the first kernel.

    `environ` is the process's environment, in which both libraries look up their folders. A
    variable that the operator has set is not changed. The first call of the process decides. An
    empty `cache_dir` changes nothing.
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
    with _lock:
        return next(iter(_decided.values()), None)


def keeps_new_code() -> bool:
    """True if code that is compiled from now on is stored for other processes."""
    folder = kept_in()
    return folder is not None and _is_writable(folder)


def seal_kept() -> None:
    """Seal the kernels that are kept by now, so that a later start finds damage to them."""
    folder = kept_in()
    if folder is not None:
        seal(folder / "triton")


def machine_key(device: torch.device) -> str:
    """A folder name from everything that decides where compiled code can run: versions, CPU, GPU.

    Sources, shapes and options are not in it, because Triton and Inductor hash those themselves.
    """
    gpu, capability = "cpu", ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu, capability = properties.name, f"{properties.major}.{properties.minor}"
    machine = {
        "python": sys.implementation.cache_tag,
        "torch": torch.__version__,
        "triton": _version_of("triton"),
        "cuda": torch.version.cuda,
        "gpu": [gpu, capability],
        "cpu": [platform.machine(), torch.backends.cpu.get_cpu_capability(), _cpu_flags()],
    }
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}-{digest(machine)[:16]}"


def machine_folder(root: Path, key: str) -> Path | None:
    """`root`/`key`, created if necessary; None, with a warning, if it can't be used."""
    folder = root / key  # folders of other keys are never removed; an operator may do so
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

    Paths are ignored, because a checkpoint is the same in any folder. Raises `TypeError` for values
    whose text may differ between processes.
    """
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


class Bundle:
    """torch.compile's artifacts for one model, in one file that any number of processes may read.

    It is replaced atomically, so the last of several writers wins. It brings Inductor's results to
    a machine without Inductor's folder. Triton kernels that a model launches itself are not in it.
    torch collects artifacts per process: if two models compile in one process, the file of each
    holds both.
    """

    def __init__(self, folder: Path | None, parts: object) -> None:
        """`parts` is everything of checkpoint and engine that determines the compiled code, see
        `digest`. Without a folder nothing is loaded or saved."""
        self._key = digest(parts)
        self._file = None if folder is None else folder / f"{self._key[:32]}.bundle"

    @property
    def exists(self) -> bool:
        """True if there is a file, even one that can't be used."""
        return self._file is not None and self._file.exists()

    def load(self) -> bool:
        """Give the file to torch, before anything is compiled. True if torch accepted it."""
        if self._file is None or not self.exists:
            return False
        try:
            found = torch.compiler.load_cache_artifacts(self._read(self._file))
        # torch raises the last two for bytes of another version
        except (OSError, ValueError, RuntimeError, AssertionError) as error:
            log.warning("%s is not used: %s", self._file, error)
            return False
        if found is None:
            log.warning("%s is not used: torch can't read it", self._file)
        return found is not None

    def save(self) -> bool:
        """Write everything compiled or loaded so far. True if a new file was written."""
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
    """Write atomically, readable for all users."""
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
    if _is_writable(folder):
        place = folder
        drop_broken(folder / "triton")
    else:
        place = _private_copy(folder)
    for variable, leaf in VARIABLES.items():
        own = environ.get(variable, "")
        if own and not _is_torchs_default(own):
            log.info("%s=%s was set and stays", variable, own)
            continue
        environ[variable] = str(place / leaf)
    log.info("compiled code is kept in %s", place)


def _is_torchs_default(value: str) -> bool:
    # importing Inductor sets the variable, so it may not be the operator's
    library = sys.modules.get("torch._inductor.runtime.cache_dir_utils")
    return library is not None and value == library.default_cache_dir()


def _is_writable(folder: Path) -> bool:
    """Both libraries can write there. Mode bits are not enough: mounts, other users, a full disk, a
    quota."""
    try:
        for leaf in VARIABLES.values():
            (folder / leaf).mkdir(mode=0o755, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder / leaf) as file:
                if not _has_room(file.fileno()):
                    log.warning("%s has no room for %d MiB", folder, NEEDED_BYTES >> 20)
                    return False
    except OSError:
        return False
    return True


def _has_room(descriptor: int) -> bool:
    try:
        os.posix_fallocate(descriptor, 0, NEEDED_BYTES)
    except OSError as error:  # others than these: the file system can't tell
        return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return True


def _private_copy(folder: Path) -> Path:
    """A private copy of `folder` for this process; empty if it can't be copied. `folder` itself
    where there is no place for temporary files: code that is kept can be read there."""
    try:
        private = Path(tempfile.mkdtemp(prefix="predictors-compiled-"))
    except OSError as error:
        log.warning("%s can't be written, nor temporary files: %s", folder, error)
        return folder
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
            shutil.copyfile(file, copy)  # without its mode, so that the libraries may write
    except OSError as error:
        log.warning("%s can't be written, and not be copied: %s", folder, error)
        for leaf in VARIABLES.values():
            shutil.rmtree(private / leaf, ignore_errors=True)
    drop_broken(private / "triton")
    _rewrite_paths(private / "triton")
    return private


def _is_kept(file: Path) -> bool:
    return file.is_file() and not file.is_symlink() and file.suffix != ".lock"


def _rewrite_paths(triton: Path) -> None:
    """Make Triton's lists of full paths name the copied files."""
    for group in triton.glob("*/__grp__*.json"):
        try:
            names = list(json.loads(group.read_text(encoding="utf-8"))["child_paths"])
        except (OSError, ValueError, KeyError, TypeError):
            group.unlink()  # Triton would fail on it
            continue
        paths = {name: str(group.parent / name) for name in names}
        group.write_text(json.dumps({"child_paths": paths}), encoding="utf-8")


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_flags() -> str:
    # Inductor compiles for the flags of the CPU that it runs on
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
