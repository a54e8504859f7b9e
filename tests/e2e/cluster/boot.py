"""The order in which a cluster comes up: what must answer before the next thing is started. Runs in
PID 1 of the cluster's namespaces; owns no loop.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable

from tests.e2e.cluster import host, images, objects, packages
from tests.e2e.cluster.certificates import leaves, write_certificates
from tests.e2e.cluster.components import Component, table
from tests.e2e.cluster.configs import API_ADDRESS, NODE_ADDRESS, PAUSE_IMAGE, write_configs
from tests.e2e.cluster.identities import NODE, write_identities
from tests.e2e.cluster.places import ClusterError, Site
from tests.e2e.cluster.processes import Processes

READY_S = 90.0
POLL_S = 0.2
START = time.monotonic()


def say(what: str) -> None:
    """One line for the supervisor's log, with the seconds since it started."""
    print(f"[{time.monotonic() - START:6.2f} s] {what}", flush=True)


def boot(site: Site, processes: Processes, keda: bool) -> None:
    """Bring everything up; raises `ClusterError` and subprocess errors."""
    parts = table(site)
    prepare(site)
    processes.start(parts["etcd"])
    processes.start(parts["kube-apiserver"])
    start_containerd(site, processes, parts["containerd"])
    wait(processes, parts["kube-apiserver"])
    for name in ("kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"):
        processes.start(parts[name])
    install_objects(site, keda)
    processes.start(parts["coredns"])
    processes.start(parts["metrics-server"])
    install_kinds(site)
    processes.start(parts["kserve-manager"])
    if keda:
        processes.start(parts["keda-operator"])
        processes.start(parts["keda-adapter"])
    finish(site, processes, parts)


def prepare(site: Site) -> None:
    """Mounts, network, cgroups, certificates and configurations."""
    host.prepare_mounts(site)
    host.prepare_network()
    host.prepare_cgroups()
    write_certificates(site.certificates, leaves(NODE_ADDRESS, API_ADDRESS))
    write_configs(site, runc=packages.find("runc") or "runc")
    write_identities(site)
    serving = {
        site.state / "kserve/k8s-webhook-server/serving-certs": ("tls.crt", "tls.key"),
        site.state / "keda": ("tls.crt", "tls.key", "ca.crt"),
    }
    sources = {"tls.crt": "server.crt", "tls.key": "server.key", "ca.crt": "ca.crt"}
    for folder, names in serving.items():
        folder.mkdir(parents=True)
        for name in names:
            shutil.copy(site.certificates / sources[name], folder / name)
    say("network, certificates and configurations made")


def start_containerd(site: Site, processes: Processes, component: Component) -> None:
    """containerd without pods of a run before, and with the pause image."""
    if (site.images / "io.containerd.metadata.v1.bolt").exists():
        # the CRI plugin reads the old pods when it starts: they go before it does
        bare = Component("containerd", ("containerd", "-c", f"{site.config}/containerd-bare.toml"))
        images.wait_for(site.containerd, processes.start(bare))
        forgotten = images.forget_containers(site)
        processes.stop("containerd")
        say(f"forgot {forgotten} containers of a run before")
    images.wait_for(site.containerd, processes.start(component))
    images.import_pause(site, PAUSE_IMAGE)
    say("containerd is ready")


def install_objects(site: Site, keda: bool) -> None:
    """Roles, namespaces and configuration: nothing that needs a CRD."""
    authority = (site.certificates / "ca.crt").read_bytes()
    things = [
        *objects.dns_objects(),
        *objects.metrics_objects(site.bin, authority),
        *objects.kserve_objects(site.bin),
    ]
    if keda:
        things += objects.keda_objects(site.bin, authority)
    create(site, objects.as_list(things))


def install_kinds(site: Site) -> None:
    """CRDs of KServe, KEDA and the Gateway API; done when the API serves the new kinds."""
    folders = [site.bin / name for name in ("kserve-crd", "keda-crd", "gateway-crd")]
    create(site, objects.joined(folders))
    kubectl(site, "wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    say("CRDs are established")


def create(site: Site, documents: str) -> None:
    """Create objects; unchecked by the client, who would fetch every schema for it."""
    kubectl(site, "create", "--validate=false", "-f", "-", stdin=documents)


def finish(site: Site, processes: Processes, parts: dict[str, Component]) -> None:
    """Wait for whatever else has to answer; KServe's webhooks follow KServe."""
    wait(processes, parts["kserve-manager"])
    authority = (site.certificates / "ca.crt").read_bytes()
    hooks = objects.as_list(objects.kserve_webhooks(site.bin, authority))
    create(site, hooks)
    for name in ("coredns", "kube-proxy", "metrics-server", "keda-operator", "keda-adapter"):
        if name in processes.running:
            wait(processes, parts[name])
    until("the node is Ready", lambda: node_is_ready(site))
    until("the default ServiceAccount exists", lambda: account_exists(site))


def wait(processes: Processes, component: Component) -> None:
    """Until a component answers."""
    processes.wait_ready(component)
    say(f"{component.name} is ready")


def until(what: str, probe: Callable[[], bool]) -> None:
    """Until a probe is true; raises `ClusterError` when it takes too long."""
    end = time.monotonic() + READY_S
    while not probe():
        if time.monotonic() > end:
            raise ClusterError(f"not in time: {what}")
        time.sleep(POLL_S)
    say(what)


def node_is_ready(site: Site) -> bool:
    """True if the node says Ready."""
    try:
        node = json.loads(kubectl(site, "get", "node", NODE, "-o", "json"))
    except ClusterError:
        return False  # not registered yet
    conditions = node["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def account_exists(site: Site) -> bool:
    """True if pods can be made in the default namespace."""
    try:
        return bool(kubectl(site, "get", "serviceaccount", "default", "-n", "default"))
    except ClusterError:
        return False


def kubectl(site: Site, *words: str, stdin: str = "") -> str:
    """The output of an admin's kubectl; raises `ClusterError` with its complaint."""
    done = subprocess.run(
        [site.bin / "kube", "kubectl", "--kubeconfig", site.kubeconfig(), *words],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "KUBECACHEDIR": str(site.state / "kubecache")},
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"kubectl {' '.join(words)}: {done.stderr.strip()[-2000:]}")
    return done.stdout
