"""The objects that a bare API server is given before the first test: CRDs, roles, KServe's config
map and webhooks, the services of KEDA and metrics-server. Read from a build's folder and changed
only where the controllers run as processes instead of pods. Applies nothing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.cluster.configs import NODE_ADDRESS

Object = dict[str, Any]
RBAC = "rbac.authorization.k8s.io"
KEDA_PORT, METRICS_PORT = 16443, 16445


def read(folder: Path, pattern: str = "*.yaml") -> list[Object]:
    """Every object in the files of a folder."""
    # the C loader: KServe's schema is two megabytes
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    texts = [path.read_text() for path in sorted(folder.glob(pattern))]
    return [d for text in texts for d in yaml.load_all(text, loader) if d]


def joined(folders: Iterable[Path]) -> str:
    """The files of folders as one, as they are: CRDs need no change."""
    return "\n---\n".join(p.read_text() for f in folders for p in sorted(f.glob("*.yaml")))


def as_list(objects: Iterable[Object]) -> str:
    """Objects as one document for `kubectl apply`."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})


def namespace(name: str) -> Object:
    """A namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def service_account(name: str, space: str) -> Object:
    """A ServiceAccount: whom a role binding means."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": space},
    }


def cluster_binding(role: str, subject: Object) -> Object:
    """Bind a ClusterRole, under the role's own name."""
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": role},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    }


def dns_objects() -> list[Object]:
    """The account of CoreDNS, and its rights."""
    watched = ["services", "pods", "namespaces", "endpoints"]
    role = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "e2e-dns"},
        "rules": [
            {"apiGroups": [""], "resources": watched, "verbs": ["list", "watch"]},
            {
                "apiGroups": ["discovery.k8s.io"],
                "resources": ["endpointslices"],
                "verbs": ["list", "watch"],
            },
        ],
    }
    return [role, cluster_binding("e2e-dns", {"kind": "User", "apiGroup": RBAC, "name": "e2e-dns"})]


def kserve_objects(build: Path) -> list[Object]:
    """KServe's namespace, config map (Standard mode, no ingress) and role."""
    (configuration,) = read(build / "kserve", "configmap-*.yaml")
    configuration["metadata"]["namespace"] = "kserve"
    entries = configuration["data"]
    entries.pop("_example", None)
    entries["deploy"] = changed(entries["deploy"], defaultDeploymentMode="Standard")
    entries["ingress"] = changed(
        entries["ingress"], disableIstioVirtualHost=True, disableIngressCreation=True
    )
    roles = read(build / "kserve", "rbac-*.yaml")
    account = service_account("kserve-controller-manager", "kserve")
    subject = {"kind": "ServiceAccount", **account["metadata"]}
    bindings = [cluster_binding(r["metadata"]["name"], subject) for r in roles]
    return [namespace("kserve"), account, configuration, *roles, *bindings]


def changed(document: str, **values: object) -> str:
    """A JSON text with some keys set."""
    return json.dumps({**json.loads(document), **values})


def kserve_webhooks(build: Path, authority: bytes) -> list[Object]:
    """KServe's webhooks, called at the process' address instead of through a Service."""
    hooks = read(build / "kserve", "webhook-*.yaml")
    bundle = base64.b64encode(authority).decode()
    for configuration in hooks:
        configuration["metadata"].pop("creationTimestamp", None)
        for hook in configuration["webhooks"]:
            path = hook["clientConfig"].pop("service")["path"]
            hook["clientConfig"] = {"url": f"https://127.0.0.1:9443{path}", "caBundle": bundle}
    return hooks


def keda_objects(build: Path, authority: bytes) -> list[Object]:
    """KEDA's roles as they are, and its metrics API at the node's address."""
    given = read(build / "keda")
    trust(given, authority)
    kept = [thing for thing in given if thing["kind"] not in {"Service"}]
    service = service_on_node("keda-metrics-apiserver", "keda", KEDA_PORT)
    return [namespace("keda"), service_account("keda-operator", "keda"), *kept, *service]


def metrics_objects(build: Path, authority: bytes) -> list[Object]:
    """metrics-server's account and roles as they are, and its API at the node's address."""
    given = read(build / "metrics-server-manifests")
    trust(given, authority)
    return [*given, *service_on_node("metrics-server", "kube-system", METRICS_PORT)]


def trust(things: Iterable[Object], authority: bytes) -> None:
    """Have the API server check the certificates of the API services among `things`."""
    for thing in things:
        if thing["kind"] == "APIService":
            thing["spec"].pop("insecureSkipTLSVerify", None)
            thing["spec"]["caBundle"] = base64.b64encode(authority).decode()


def service_on_node(name: str, space: str, node_port: int) -> list[Object]:
    """A Service without a selector, and its one endpoint: a process on the node."""
    place = {"name": name, "namespace": space}
    port = {"name": "https", "port": 443, "targetPort": node_port}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": place, "spec": {"ports": [port]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-e2e",
                "namespace": space,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "https", "port": node_port}],
            "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": True}}],
        },
    ]
