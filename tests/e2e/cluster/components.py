"""Every process of the cluster: its command, its environment, and the address that answers once it
is ready. A table; starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.e2e.cluster.configs import NODE_ADDRESS, SERVICE_NET
from tests.e2e.cluster.identities import NODE
from tests.e2e.cluster.places import Site

ETCD = "http://127.0.0.1:2379"
ETCD_PEER = "http://127.0.0.1:2380"


@dataclass(frozen=True)
class Component:
    """One process. `vital` ones end the cluster when they end unasked; others are started again."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_url: str | None = None
    vital: bool = True


def table(site: Site) -> dict[str, Component]:
    """All components by name."""
    made = (
        etcd(site),
        api_server(site),
        containerd(site),
        controllers(site),
        scheduler(site),
        kubelet(site),
        proxy(site),
        dns(site),
        kserve(site),
        keda_operator(site),
        keda_adapter(site),
        metrics_server(site),
    )
    return {component.name: component for component in made}


def etcd(site: Site) -> Component:
    """The store: on disk in the run's state, so that it outlives a stopped API server."""
    return Component(
        "etcd",
        (
            f"{site.bin}/kube", "etcd", "--data-dir", f"{site.state}/etcd", "--unsafe-no-fsync",
            "--listen-client-urls", ETCD, "--advertise-client-urls", ETCD,
            "--listen-peer-urls", ETCD_PEER, "--initial-advertise-peer-urls", ETCD_PEER,
            "--initial-cluster", f"default={ETCD_PEER}", "--logger", "zap", "--log-level", "warn",
        ),
    )  # fmt: skip


def api_server(site: Site) -> Component:
    """The API, with the aggregation layer for KEDA's metrics adapter."""
    keys, folder = site.certificates, site.state / "apiserver"
    return Component(
        "kube-apiserver",
        (
            f"{site.bin}/kube", "kube-apiserver", f"--etcd-servers={ETCD}", "--secure-port=6443",
            f"--advertise-address={NODE_ADDRESS}", f"--service-cluster-ip-range={SERVICE_NET}",
            f"--cert-dir={folder}", f"--tls-cert-file={keys}/server.crt",
            f"--tls-private-key-file={keys}/server.key", f"--client-ca-file={keys}/ca.crt",
            f"--token-auth-file={site.config}/tokens.csv",
            f"--service-account-key-file={keys}/sa.key",
            f"--service-account-signing-key-file={keys}/sa.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            f"--kubelet-client-certificate={keys}/kubelet-client.crt",
            f"--kubelet-client-key={keys}/kubelet-client.key",
            # logs, exec and port-forward dial the node's name by default, which nobody resolves
            "--kubelet-preferred-address-types=InternalIP",
            "--enable-aggregator-routing=true",
            # beta and off: a test's policy gives pods ids as OpenShift's admission does
            "--feature-gates=MutatingAdmissionPolicy=true",
            "--runtime-config=admissionregistration.k8s.io/v1beta1=true",
            f"--requestheader-client-ca-file={keys}/ca.crt",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={keys}/front-proxy.crt",
            f"--proxy-client-key-file={keys}/front-proxy.key",
            "--allow-privileged=true", "--enable-priority-and-fairness=false",
            "--profiling=false", "--event-ttl=1h", "--v=1",
        ),
        ready_url="https://127.0.0.1:6443/readyz",
    )  # fmt: skip


def containerd(site: Site) -> Component:
    """The container runtime; its root is kept on disk across runs."""
    return Component("containerd", ("containerd", "--config", f"{site.config}/containerd.toml"))


def controllers(site: Site) -> Component:
    """Kubernetes' controllers; a claim is bound within a second and a horizontal autoscaler reckons
    every three, instead of fifteen each."""
    keys = site.certificates
    return Component(
        "kube-controller-manager",
        (
            f"{site.bin}/kube", "kube-controller-manager", "--leader-elect=false",
            f"--kubeconfig={site.kubeconfig('kube-controller-manager')}",
            f"--root-ca-file={keys}/ca.crt", f"--service-account-private-key-file={keys}/sa.key",
            "--use-service-account-credentials=true",
            f"--cluster-signing-cert-file={keys}/ca.crt",
            f"--cluster-signing-key-file={keys}/ca.key",
            "--bind-address=127.0.0.1", f"--cert-dir={site.state}/controllers",
            "--controllers=*,-bootstrapsigner,-tokencleaner,-nodeipam,-cloud-node-lifecycle,"
            "-service-lb-controller",
            "--node-monitor-period=2s", "--pvclaimbinder-sync-period=1s",
            "--horizontal-pod-autoscaler-sync-period=3s", "--v=1",
        ),
    )  # fmt: skip


def scheduler(site: Site) -> Component:
    """Kubernetes' scheduler."""
    return Component(
        "kube-scheduler",
        (
            f"{site.bin}/kube", "kube-scheduler", "--leader-elect=false",
            f"--kubeconfig={site.kubeconfig('kube-scheduler')}",
            "--bind-address=127.0.0.1", f"--cert-dir={site.state}/scheduler", "--v=1",
        ),
    )  # fmt: skip


def kubelet(site: Site) -> Component:
    """The one node's agent."""
    return Component(
        "kubelet",
        (
            f"{site.bin}/kube", "kubelet", f"--config={site.config}/kubelet.yaml",
            f"--kubeconfig={site.kubeconfig('kubelet')}", f"--root-dir={site.state}/kubelet",
            f"--cert-dir={site.state}/kubelet-certificates", f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}", "--v=1",
        ),
    )  # fmt: skip


def proxy(site: Site) -> Component:
    """Services' addresses, by nftables in the cluster's own network namespace."""
    return Component(
        "kube-proxy",
        (f"{site.bin}/kube", "kube-proxy", f"--config={site.config}/proxy.yaml", "--v=1"),
        ready_url="http://127.0.0.1:10256/healthz",
    )


def dns(site: Site) -> Component:
    """The cluster's names, on the node's address."""
    return Component(
        "coredns",
        (f"{site.bin}/dns", "-conf", f"{site.config}/Corefile"),
        ready_url="http://127.0.0.1:18053/ready",
    )


def kserve(site: Site) -> Component:
    """KServe's controller with its webhooks, as its own ServiceAccount."""
    return Component(
        "kserve-manager",
        (
            f"{site.bin}/kserve-manager", "--metrics-addr=127.0.0.1:18080",
            "--health-probe-addr=127.0.0.1:18081", "--webhook-port=9443", "--leader-elect=false",
        ),
        {
            "KUBECONFIG": str(site.kubeconfig("kserve")),
            "POD_NAMESPACE": "kserve",
            "TMPDIR": f"{site.state}/kserve",  # where the webhook server looks for certificates
        },
        ready_url="http://127.0.0.1:18081/readyz",
        vital=False,
    )  # fmt: skip


def keda_environment(site: Site) -> dict[str, str]:
    """The variables that KEDA's Deployments set."""
    return {
        "KUBECONFIG": str(site.kubeconfig("keda")),
        "POD_NAMESPACE": "keda",
        "POD_NAME": "keda-operator",
        "OPERATOR_NAME": "keda-operator",
        "WATCH_NAMESPACE": "",
    }


def keda_operator(site: Site) -> Component:
    """KEDA's operator, as its own ServiceAccount."""
    return Component(
        "keda-operator",
        (
            f"{site.bin}/keda-operator", "--metrics-bind-address=127.0.0.1:18090",
            "--health-probe-bind-address=127.0.0.1:18091",
            "--metrics-service-bind-address=127.0.0.1:9666", f"--cert-dir={site.state}/keda",
            "--enable-webhook-patching=false", "--zap-encoder=console",
        ),
        keda_environment(site),
        ready_url="http://127.0.0.1:18091/readyz",
        vital=False,
    )  # fmt: skip


def keda_adapter(site: Site) -> Component:
    """The external metrics API that the horizontal autoscaler asks, as the same ServiceAccount."""
    kubeconfig, keys = site.kubeconfig("keda"), f"{site.state}/keda"
    return Component(
        "keda-adapter",
        (
            f"{site.bin}/keda-adapter", "--secure-port=16443", f"--bind-address={NODE_ADDRESS}",
            f"--client-ca-file={keys}/ca.crt", f"--tls-cert-file={keys}/tls.crt",
            f"--tls-private-key-file={keys}/tls.key", f"--cert-dir={keys}",
            f"--lister-kubeconfig={kubeconfig}", f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--metrics-service-address=127.0.0.1:9666", "--port=18092",
        ),
        keda_environment(site),
        ready_url=f"https://{NODE_ADDRESS}:16443/readyz",
        vital=False,
    )  # fmt: skip


def metrics_server(site: Site) -> Component:
    """CPU and memory of pods, which the horizontal autoscaler asks for; read every 10 s from the
    kubelet, whose own certificate is not signed."""
    kubeconfig, keys = site.kubeconfig("metrics-server"), site.certificates
    return Component(
        "metrics-server",
        (
            f"{site.bin}/metrics-server", "--secure-port=16445", f"--bind-address={NODE_ADDRESS}",
            f"--tls-cert-file={keys}/server.crt", f"--tls-private-key-file={keys}/server.key",
            f"--kubeconfig={kubeconfig}", f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--metric-resolution=10s", "--kubelet-request-timeout=5s",
            "--kubelet-preferred-address-types=InternalIP", "--kubelet-insecure-tls",
        ),
        ready_url=f"https://{NODE_ADDRESS}:16445/livez",
        vital=False,
    )  # fmt: skip
