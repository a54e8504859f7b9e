"""Build the cluster's binaries from Go modules into the machine's cache, and copy the manifests of
KServe, KEDA and the Gateway API out of their modules. Starts no cluster.

A build is named by the hash of its inputs, so that a machine keeps it across clones; each file
appears whole (built beside, then renamed), and two builds at a time wait for each other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.e2e.cluster import packages, recipe
from tests.e2e.cluster.places import (
    GIGABYTE,
    ClusterError,
    cache,
    check_free_disk,
    one_at_a_time,
)

GO_FOLDERS = ("/usr/local/go/bin", "/usr/lib/go/bin")
COLD_BUILD_BYTES = (
    11 * GIGABYTE
)  # measured: modules 4.5 GB, Go's build cache 5.4 GB, binaries 0.6 GB
WARM_BUILD_BYTES = 2 * GIGABYTE  # binaries, and what linking them needs for a while
GO_CACHES = ("GOMODCACHE", "GOCACHE")
KEPT_BUILDS = 2


def bin_folder() -> Path:
    """Where the build of these inputs lies, there or not."""
    return cache() / f"bin-{recipe.build_hash()}"


def built_folder() -> Path:
    """The folder of a whole build; raises `ClusterError` naming what is missing."""
    folder = bin_folder()
    lacking = [title for name, title in contents() if not (folder / name).exists()]
    if lacking:
        raise ClusterError(f"not built: {', '.join(lacking)}; `python -m tests.e2e.cluster build`")
    return folder


def contents() -> list[tuple[str, str]]:
    """Every name in a whole build, and what to call it."""
    binaries = [(b.name, b.title) for b in recipe.BINARIES]
    return [*binaries, *((m.folder, m.title) for m in recipe.MANIFESTS)]


def build(only: str | None = None) -> Path:
    """Build what is missing; `only` takes names with commas. Raises `ClusterError`."""
    folder = bin_folder()
    with one_at_a_time("build"):
        if only is None:
            packages.install_missing()
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        try:
            wanted = recipe.wanted_binaries(only, {p.name for p in folder.iterdir()})
        except ValueError as error:
            raise ClusterError(str(error)) from None
        sources = [] if only is not None else [
            m for m in recipe.MANIFESTS if not (folder / m.folder).exists()
        ]  # fmt: skip
        if wanted or sources:
            build_missing(folder, wanted, sources)
        if (folder / "kube").exists() and not (folder / "kubectl").exists():
            (folder / "kubectl").symlink_to("kube")
        forget_old_builds(folder)
    return folder


def build_missing(
    folder: Path, wanted: list[recipe.Binary], sources: list[recipe.Manifests]
) -> None:
    """Find Go, look at the disk, then build and copy."""
    go = find_go()
    if wanted:
        there = sum(size_of(Path(run_go(go, ["env", name]).strip())) for name in GO_CACHES)
        needed = max(COLD_BUILD_BYTES - there, WARM_BUILD_BYTES)
        check_free_disk(cache(), needed, "a build of the test cluster")
    for binary in wanted:
        compile_one(go, binary, folder)
    for manifests in sources:
        copy_manifests(module_folder(go, manifests), manifests, folder)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, there or not; what vanishes meanwhile counts nothing."""
    size = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(f"{at}/{name}").st_size
            except FileNotFoundError:
                continue
    return size


def find_go() -> str:
    """The go command; raises `ClusterError` when there is none or only one too old."""
    places = f"{os.environ.get('PATH', '')}:{':'.join(GO_FOLDERS)}"
    go = shutil.which("go", path=places)
    needed = ".".join(map(str, recipe.needed_go()))
    if go is None:
        raise ClusterError(
            f"the test cluster is built with Go {needed} or newer; there is no go on PATH or in "
            f"{' or '.join(GO_FOLDERS)} (Debian's golang is too old)"
        )
    said = run_go(go, ["version"])
    found = re.search(r"go(\d+(?:\.\d+)+)", said)
    if found is None or recipe.as_version(found.group(1)) < recipe.needed_go():
        raise ClusterError(f"the test cluster needs Go {needed} or newer; {go} is {said.strip()}")
    return go


def run_go(go: str, words: list[str]) -> str:
    """The output of a go command; raises `ClusterError` with the end of what it complained."""
    environment = {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    done = subprocess.run(
        [go, *words], cwd=recipe.BUILD, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ClusterError(f"go {words[0]} failed: {done.stderr[-2000:]}")
    return done.stdout


def compile_one(go: str, binary: recipe.Binary, folder: Path) -> None:
    """One binary, in place only when it is whole."""
    start = time.monotonic()
    unfinished = folder / f".{binary.name}"
    try:
        run_go(go, ["build", *recipe.GO_FLAGS, "-o", str(unfinished), binary.package])
    except ClusterError as error:
        raise ClusterError(f"{binary.title} cannot be had: {error}") from None
    unfinished.rename(folder / binary.name)
    print(f"built {binary.title} in {time.monotonic() - start:.0f} s", flush=True)


def module_folder(go: str, manifests: recipe.Manifests) -> Path:
    """Where Go unpacked a module; raises `ClusterError` naming what it would bring."""
    try:
        said = run_go(go, ["mod", "download", "-json", manifests.module])
    except ClusterError as error:
        raise ClusterError(f"{manifests.title} cannot be had: {error}") from None
    return Path(json.loads(said)["Dir"])


def copy_manifests(module: Path, manifests: recipe.Manifests, folder: Path) -> None:
    """Copy one set of files, in place only when it is whole; every pattern must find something."""
    unfinished = Path(tempfile.mkdtemp(dir=folder, prefix="."))
    for pattern in manifests.patterns:
        found = sorted(module.glob(pattern))
        if not found:
            raise ClusterError(f"{manifests.title} cannot be had: no {pattern} in {module.name}")
        for path in found:
            # two of KEDA's folders have a role.yaml; and a module's files are read-only
            (unfinished / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    unfinished.rename(folder / manifests.folder)


def forget_old_builds(current: Path) -> None:
    """Keep this build and the one used last before it."""
    builds = sorted(cache().glob("bin-*"), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in [b for b in builds if b != current][KEPT_BUILDS - 1 :]:
        shutil.rmtree(old)
