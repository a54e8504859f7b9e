"""Identities towards the API server: a token and a kubeconfig for each component. Grants
nothing: rights come from Kubernetes' own bootstrap roles and from the roles that are applied.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.e2e.cluster.places import Site

NODE = "e2e"
SERVER = "https://127.0.0.1:6443"

IDENTITIES = {  # name of the kubeconfig: user, groups
    "admin": ("e2e-admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "kube-proxy": ("system:kube-proxy", ""),
    "coredns": ("e2e-dns", ""),
    "kserve": (
        "system:serviceaccount:kserve:kserve-controller-manager",
        "system:serviceaccounts,system:serviceaccounts:kserve",
    ),
    "keda": (
        "system:serviceaccount:keda:keda-operator",
        "system:serviceaccounts,system:serviceaccounts:keda",
    ),
    "metrics-server": (
        "system:serviceaccount:kube-system:metrics-server",
        "system:serviceaccounts,system:serviceaccounts:kube-system",
    ),
}


def kubeconfig(name: str, token: str, authority: Path) -> dict[str, object]:
    """A kubeconfig with one cluster, one user, one context."""
    cluster = {"server": SERVER, "certificate-authority": str(authority)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "e2e",
        "clusters": [{"name": "e2e", "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": name}}],
    }


def token_line(token: str, user: str, groups: str) -> str:
    """A line of the API server's token file."""
    return f'{token},{user},{user},"{groups}"' if groups else f"{token},{user},{user}"


def write_identities(site: Site) -> None:
    """New tokens, one kubeconfig each, and the file by which the API server knows them."""
    lines = []
    for name, (user, groups) in IDENTITIES.items():
        token = os.urandom(16).hex()
        lines.append(token_line(token, user, groups))
        document = kubeconfig(name, token, site.certificates / "ca.crt")
        path = site.kubeconfig(name)
        path.write_text(json.dumps(document))
        path.chmod(0o600)
    (site.config / "tokens.csv").write_text("\n".join(lines) + "\n")


def token_of(site: Site, name: str = "admin") -> str:
    """The token in an identity's kubeconfig."""
    document = json.loads(site.kubeconfig(name).read_text())
    token: str = document["users"][0]["user"]["token"]
    return token
