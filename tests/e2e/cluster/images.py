"""The images and pods of a cluster's containerd: imports archives that are not there yet, and
forgets the pods of a run that was cut off. Speaks to containerd through `ctr`.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.e2e.cluster import archive
from tests.e2e.cluster.places import ClusterError, Site, check_free_disk

LABEL = "vision-predictors.test/archive"
SPACE = "k8s.io"
READY_S = 30.0
IMPORT_FACTOR = 2.2  # the blobs, and the same files unpacked


def ctr(socket: Path, *words: object) -> str:
    """The output of a ctr command; raises `ClusterError` with its complaint."""
    command = ["ctr", "--address", str(socket), "-n", SPACE, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"ctr {' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


def load(site: Site, path: Path) -> str:
    """Import an archive unless what it holds is there under its names; returns what was done."""
    try:
        identity = archive.read_identity(path)
    except (OSError, ValueError) as error:
        raise ClusterError(f"cannot load {path}: {error}") from None
    names = ", ".join(identity.references)
    if holds(site, identity):
        return f"{names} is there already"
    check_free_disk(site.images, path.stat().st_size * IMPORT_FACTOR, f"an import of {path.name}")
    start = time.monotonic()
    ctr(site.containerd, "images", "import", path.absolute())
    for reference in identity.references:
        mark(site, reference, identity.digest)
    return f"imported {names} in {time.monotonic() - start:.1f} s"


def holds(site: Site, identity: archive.Archived) -> bool:
    """True if every reference was imported from the same content and is still what it was."""
    if not identity.references:
        return False
    return all(
        f"{LABEL}={identity.digest}.{target}" in row
        for reference in identity.references
        for target, row in [described(site, reference)]
    )


def described(site: Site, reference: str) -> tuple[str, str]:
    """Digest of an image's manifest and its row with all labels; empty when it is not there."""
    for row in ctr(site.containerd, "images", "ls", f"name=={reference}").splitlines()[1:]:
        columns = row.split()
        return columns[2].removeprefix("sha256:"), row
    return "", ""


def mark(site: Site, reference: str, digest: str) -> None:
    """Remember beside an image which archive it came from and what it became."""
    target, _ = described(site, reference)
    ctr(site.containerd, "images", "label", reference, f"{LABEL}={digest}.{target}")


def wait_for(socket: Path, process: subprocess.Popen[bytes]) -> None:
    """Until containerd answers; raises `ClusterError` when it ended or took too long."""
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        if socket.exists():
            try:
                ctr(socket, "version")
                return
            except ClusterError:
                pass
        time.sleep(0.05)
    raise ClusterError("containerd did not answer; see containerd.log")


def forget_containers(site: Site) -> int:
    """Remove what a run before has left in containerd's root: nothing runs there any more."""
    names = ctr(site.containerd, "containers", "ls", "-q").split()
    if names:
        ctr(site.containerd, "containers", "rm", *names)
    return len(names)


def import_pause(site: Site, reference: str) -> None:
    """The sandbox's image, made from the pause binary."""
    path = site.state / "pause.tar"
    archive.write_single_file_image(path, reference, site.bin / "pause")
    load(site, path)
