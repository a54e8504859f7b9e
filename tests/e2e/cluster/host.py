"""Resources of the machine for a cluster: mounts and a network in private namespaces, cgroups
outside of them, and how all of it is given back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.e2e.cluster.configs import CGROUP, NODE_ADDRESS, SERVICE_NET
from tests.e2e.cluster.places import Site

# runc, CNI, the kubelet and KEDA have these paths built in: each is hidden by a tmpfs
BUILT_IN_FOLDERS = (
    "/run/containerd",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/run/secrets/kubernetes.io/serviceaccount",
)
# the kubelet sets these for the whole machine, but only where they differ: it is shown what agrees
SYSCTLS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
}
CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = (
    "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd",
)  # fmt: skip
GIVE_BACK_S = 10.0


def missing_folders() -> list[Path]:
    """Of the built-in folders and their parents, those that the machine does not have yet."""
    wanted = [Path(name) for name in BUILT_IN_FOLDERS]
    every = {folder for path in wanted for folder in (path, *path.parents)}
    return sorted(folder for folder in every if not folder.exists())


def prepare_mounts(site: Site) -> None:
    """Hide what would be shared with the machine. To be called in a mount namespace of its own."""
    mount("--make-rshared", "/")
    for name in BUILT_IN_FOLDERS:
        Path(name).mkdir(parents=True, exist_ok=True)
        mount("-t", "tmpfs", "e2e", name)
    Path(BUILT_IN_FOLDERS[-1], "namespace").write_text("keda")
    for name, value in SYSCTLS.items():
        agreeing = site.run / ("sysctl-" + name.replace("/", "-"))
        agreeing.write_text(f"{value}\n")
        mount("--bind", agreeing, f"/proc/sys/{name}")


def prepare_network() -> None:
    """Loopback, the pods' bridge, a route to services. In a network namespace of its own."""
    ip("link", "set", "lo", "up")
    ip("link", "add", "cni0", "type", "bridge")
    ip("addr", "add", f"{NODE_ADDRESS}/24", "dev", "cni0")
    ip("link", "set", "cni0", "up")
    # without a route a service's address is unreachable before it could be translated
    ip("route", "add", SERVICE_NET, "dev", "cni0", "src", NODE_ADDRESS)
    for key in ("ipv4/ip_forward", "bridge/bridge-nf-call-iptables"):
        Path("/proc/sys/net", key).write_text("1")


def prepare_cgroups() -> None:
    """The kubelet's root in every hierarchy; a cpuset needs its cpus and mems."""
    if (CGROUPS / "cgroup.controllers").exists():
        (CGROUPS / CGROUP).mkdir(exist_ok=True)
        return
    for controller in CONTROLLERS:
        folder = CGROUPS / controller / CGROUP
        folder.mkdir(exist_ok=True)
        if controller == "cpuset":
            for name in ("cpuset.cpus", "cpuset.mems"):
                (folder / name).write_text((folder.parent / name).read_text())


def remove_cgroups(root: Path = CGROUPS, timeout_s: float = GIVE_BACK_S) -> list[Path]:
    """Remove the cluster's cgroups, deepest first; what is left when time is up is returned."""
    end = time.monotonic() + timeout_s
    while True:
        left = [folder for top in our_cgroups(root) for folder in remove_tree(top)]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)


def our_cgroups(root: Path) -> list[Path]:
    """The cluster's folder in each hierarchy, or in the one that there is."""
    return [top for top in (root / CGROUP, *sorted(root.glob(f"*/{CGROUP}"))) if top.exists()]


def remove_tree(top: Path) -> list[Path]:
    """Remove folders only: a cgroup's files go with it. Returns what would not go."""
    left = []
    for folder, _, _ in os.walk(top, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            left.append(Path(folder))
    return left


def network_of(pid: int) -> str:
    """The name of a process' network namespace; empty when the process is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def processes_in(network: str) -> set[int]:
    """Everything that runs in a network namespace."""
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return {pid for pid in pids if network_of(pid) == network}


def end_processes(network: str) -> None:
    """Kill what tests have left in the cluster's network; the machine's own is never touched."""
    if network in {"", network_of(1), network_of(os.getpid())}:
        return
    for pid in processes_in(network):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def mount(*words: object) -> None:
    """One mount command."""
    subprocess.run(["mount", *map(str, words)], check=True)


def ip(*words: str) -> None:
    """One ip command."""
    subprocess.run(["ip", *words], check=True)
