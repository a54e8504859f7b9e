"""Up, down, and commands inside: what the command line does to the one cluster of a machine.

Everything lives in private pid, mount and network namespaces whose PID 1 is the supervisor: killing
it ends every component and pod and drops every mount and interface. Only cgroups, the run folder
and the state on disk are left for `down`, which works from what it finds, after a crash too.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.cluster import host, packages
from tests.e2e.cluster.building import built_folder
from tests.e2e.cluster.places import (
    GIGABYTE,
    ROOT,
    RUN,
    ClusterError,
    Site,
    check_free_disk,
    new_site,
    one_at_a_time,
    saved_site,
)

UP_S = 180.0
GONE_S = 20.0
STATE_BYTES = 3 * GIGABYTE
IMAGE = "localhost/vision-predictors:e2e"
UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL")


def up(keda: bool = True) -> None:
    """Bring a cluster up and return when it can be used; raises `ClusterError`."""
    need_root()
    lacking = packages.missing()
    if lacking:
        raise ClusterError(f"not installed: {' '.join(lacking)}; `make e2e-cluster` installs them")
    with one_at_a_time("up"):
        need_none()
        down()
        site = new_site(built_folder())
        check_free_disk(site.state.parent, STATE_BYTES, "a cluster, its images aside,")
        make_folders(site)
        launch(site, keda)


def need_root() -> None:
    """Raise `ClusterError` for anybody else."""
    if os.geteuid() != 0:
        raise ClusterError("the test cluster needs root for its namespaces: run this under sudo -E")


def need_none() -> None:
    """Raise `ClusterError` while a cluster is up: its owner takes it down."""
    if supervisor_pid() is not None:
        raise ClusterError("a cluster is up already: `python -m tests.e2e.cluster down` first")


def make_folders(site: Site) -> None:
    """Empty folders for a new cluster, and a note of those that the machine did not have."""
    site.run.mkdir(parents=True, mode=0o755)
    missing = [str(path) for path in host.missing_folders()]
    (site.run / "made.json").write_text(json.dumps(missing))
    shutil.rmtree(site.log_folder, ignore_errors=True)
    for folder in (site.state, site.images, site.log_folder, site.config):
        folder.mkdir(parents=True, exist_ok=True)
    site.save()


def launch(site: Site, keda: bool) -> None:
    """Start the supervisor in new namespaces and wait until it says ready."""
    command = [*UNSHARE, sys.executable, "-m", "tests.e2e.cluster.supervisor"]
    log = site.log_folder / "supervisor.log"
    with log.open("ab") as written:
        process = subprocess.Popen(
            command + ([] if keda else ["--no-keda"]),
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(site.state), "PATH": system_path()},
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    end = time.monotonic() + UP_S
    while process.poll() is None and time.monotonic() < end:
        note_pid(site, process.pid)
        if (site.run / "ready").exists():
            print(log.read_text(), end="", flush=True)
            return
        time.sleep(0.05)
    down()
    raise ClusterError(f"the cluster did not come up:\n{log.read_text()}")


def note_pid(site: Site, parent: int) -> None:
    """Write down the supervisor's pid as the machine sees it, once unshare has forked it."""
    noted = site.run / "pid"
    children = Path(f"/proc/{parent}/task/{parent}/children")
    if not noted.exists() and children.exists():
        found = children.read_text().split()
        if found:
            (site.run / "network").write_text(host.network_of(int(found[0])))
            noted.write_text(f"{found[0]} {started_at(int(found[0]))}")


def started_at(pid: int) -> str:
    """When a process started, in clock ticks since boot: a pid alone may have been reused."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def supervisor_pid() -> int | None:
    """The supervisor, if it is alive."""
    try:
        pid, started = (RUN / "pid").read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if started and started_at(int(pid)) == started else None


def down() -> float:
    """End and remove whatever there is of a cluster; the seconds it took. Raises `ClusterError`."""
    need_root()
    start = time.monotonic()
    pid = supervisor_pid()
    if (RUN / "failed").exists():
        name = (RUN / "failed").read_text()
        print(f"{name} ended by itself while the cluster was up: see its log", flush=True)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
    if (RUN / "network").exists():
        host.end_processes((RUN / "network").read_text())
    left = host.remove_cgroups()
    if left:
        raise ClusterError(f"still in use: {', '.join(map(str, left))}")
    if RUN.exists():
        clean_up(saved_site() if (RUN / "site.json").exists() else None)
    return time.monotonic() - start


def wait_gone(pid: int) -> None:
    """Until the kernel has ended a namespace."""
    started = started_at(pid)
    end = time.monotonic() + GONE_S
    while started_at(pid) == started and started:
        if time.monotonic() > end:
            raise ClusterError(f"process {pid} would not end")
        if is_zombie(pid):
            return
        time.sleep(0.02)


def is_zombie(pid: int) -> bool:
    """True if a process has ended and waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def clean_up(site: Site | None) -> None:
    """Keep the pods' logs, remove state and run folder and the folders that `up` had to make."""
    if site is not None:
        pods = site.state / "pod-logs"
        if pods.exists():
            shutil.copytree(pods, site.out / "pods", dirs_exist_ok=True)
        shutil.rmtree(site.state, ignore_errors=True)
    made = RUN / "made.json"
    folders = json.loads(made.read_text()) if made.exists() else []
    shutil.rmtree(RUN)
    for folder in sorted(folders, key=len, reverse=True):
        try:
            os.rmdir(folder)
        except OSError:
            continue  # gone, or somebody else uses it by now


def run(command: Sequence[str]) -> int:
    """Run a command in the cluster's network namespace; its exit code."""
    need_root()
    pid = supervisor_pid()
    if pid is None:
        raise ClusterError("no cluster is up: `python -m tests.e2e.cluster up` first")
    words = [packages.find("nsenter") or "nsenter", "-t", str(pid), "-n", "--", *command]
    return subprocess.run(words, env=environment(saved_site()), check=False).returncode


def environment(site: Site) -> dict[str, str]:
    """The environment of a command inside."""
    caches = site.run / "client"
    return {
        **os.environ,
        "PATH": f"{site.bin}:{system_path()}",
        "KUBECONFIG": str(site.kubeconfig()),
        "KUBECACHEDIR": str(caches / "kube"),
        "HELM_CACHE_HOME": str(caches / "helm-cache"),
        "HELM_CONFIG_HOME": str(caches / "helm-config"),
        "HELM_DATA_HOME": str(caches / "helm-data"),
        "E2E_OUT": str(site.out),
        "E2E_IMAGE": os.environ.get("E2E_IMAGE", IMAGE),
        "E2E_SUPERVISOR": str(site.control),
        "E2E_CONTAINERD": str(site.containerd),
    }


def system_path() -> str:
    """PATH, with the system's folders."""
    return f"{os.environ.get('PATH', '')}:{packages.SYSTEM_FOLDERS}"


def with_cluster(command: Sequence[str], keda: bool = True) -> int:
    """Up, run a command, and down whatever happens; the command's exit code."""
    need_none()
    exit_on_signals()
    try:
        up(keda)
        return run(command)
    finally:
        # a second signal must not cut the end short
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        print(f"down in {down():.1f} s", flush=True)


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: what must be undone is undone."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def leave(number: int, frame: object) -> None:
    """A signal becomes an exception."""
    sys.exit(128 + number)
