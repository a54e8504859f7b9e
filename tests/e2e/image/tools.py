"""The programs that build images: runs them, installs what Debian has of them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.image.places import ROOT, CannotBuild


def run(command: Sequence[str], *, cwd: Path = ROOT, quiet: bool = False) -> None:
    """Run `command` and say how long it took; its output is shown, of a `quiet` one only when it
    fails. Raises `CannotBuild` then."""
    started = time.monotonic()
    print(f"+ {shlex.join(command)}", flush=True)
    pipe = subprocess.PIPE if quiet else None
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    )
    if done.returncode:
        said = f"\n{done.stdout}{done.stderr}" if quiet else ""
        raise CannotBuild(f"{shlex.join(command)} ended with {done.returncode}{said}")
    print(f"+ took {time.monotonic() - started:.1f} s", flush=True)


def ask(command: Sequence[str], *, stdin: Path = Path(os.devnull)) -> str:
    """The output of `command`, which reads `stdin`. Raises `CannotBuild` with what it said when it
    fails."""
    with stdin.open("rb") as given:
        done = subprocess.run(command, cwd=ROOT, stdin=given, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def install(*packages: str) -> None:
    """Have Debian's packages that are not there, each named like its program or its keyring."""
    missing = [package for package in packages if not _is_there(package)]
    if not missing:
        return
    names = " ".join(missing)
    if shutil.which("apt-get") is None:
        raise CannotBuild(f"no apt-get to install {names} with; install them and try again")
    root = [] if os.geteuid() == 0 else ["sudo"]
    env = ["env", "DEBIAN_FRONTEND=noninteractive"]
    run([*root, *env, "apt-get", "update", "-qq"], quiet=True)
    install_them = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    run([*root, *env, *install_them], quiet=True)
    still = [package for package in missing if not _is_there(package)]
    if still:
        raise CannotBuild(f"apt-get did not bring {' '.join(still)}")


def _is_there(package: str) -> bool:
    keyring = Path("/usr/share/keyrings", f"{package}.gpg")
    return shutil.which(package) is not None or keyring.exists()
