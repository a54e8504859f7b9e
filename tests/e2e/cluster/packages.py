"""Which of Debian's packages the cluster still needs, and their installation without starting their
services.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.cluster.places import ClusterError

PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
    "nginx": "nginx-light",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "prometheus": "prometheus",
}
"""The command or the file that must be there, and the package that brings it."""

POLICY = Path("/usr/sbin/policy-rc.d")
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where Debian keeps runc, nft and ip; not every user has them on PATH."""


def on_this_machine(wanted: str) -> bool:
    """True if a command or a file is there."""
    if wanted.startswith("/"):
        return Path(wanted).exists()
    return find(wanted) is not None


def find(command: str) -> str | None:
    """The path of a command, looked for in the system's folders too."""
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:{SYSTEM_FOLDERS}")


def missing(there: Callable[[str], bool] = on_this_machine) -> list[str]:
    """Packages whose command or file is not there, sorted."""
    return sorted(package for wanted, package in PACKAGES.items() if not there(wanted))


def install_missing() -> None:
    """Install what is missing; raises `ClusterError` naming what could not be had."""
    wanted = missing()
    if not wanted:
        return
    names = " ".join(wanted)
    if shutil.which("apt-get") is None:
        raise ClusterError(f"the test cluster needs {names}, and there is no apt-get to install it")
    root = [] if os.geteuid() == 0 else ["sudo"]
    print(f"installing {names}", flush=True)
    with services_stay_off(root):
        for words in (
            ["update", "-qq"],
            ["install", "-y", "-qq", "--no-install-recommends", *wanted],
        ):
            done = subprocess.run(
                [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *words],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise ClusterError(f"apt-get could not install {names}: {done.stderr[-600:]}")
    left = missing()
    if left:
        raise ClusterError(f"installed, yet still missing: {' '.join(left)}")


@contextmanager
def services_stay_off(root: list[str]) -> Iterator[None]:
    """Debian asks this script before it starts a service; ours says no, an existing one stays."""
    if POLICY.exists():
        yield
        return
    script = "#!/bin/sh\nexit 101\n"
    subprocess.run(
        [*root, "tee", POLICY], input=script, text=True, stdout=subprocess.DEVNULL, check=True
    )
    subprocess.run([*root, "chmod", "755", POLICY], check=True)
    try:
        yield
    finally:
        subprocess.run([*root, "rm", "-f", POLICY], check=True)
