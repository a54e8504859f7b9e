"""CRDs of what stands around a release: KServe, the Gateway API, the Prometheus Operator,
cert-manager, Envoy Gateway and Traefik. Copied out of Go modules into the machine's cache, for
schema tests without a cluster and for the API server of one.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path

from tests.e2e.cluster import recipe
from tests.e2e.cluster.building import find_go, run_go
from tests.e2e.cluster.places import cache, one_at_a_time

KSERVE = "github.com/kserve/kserve"
GATEWAY = "sigs.k8s.io/gateway-api"
OPERATOR = "github.com/prometheus-operator/prometheus-operator"
OPERATOR_VERSION = "v0.85.0"
CERT_MANAGER = "github.com/cert-manager/cert-manager"
CERT_MANAGER_VERSION = "v1.19.1"
ENVOY = "github.com/envoyproxy/gateway"
ENVOY_VERSION = "v1.9.1"
TRAEFIK = "github.com/traefik/traefik/v3"
TRAEFIK_VERSION = "v3.7.13"
OWN_VERSIONS = {  # of modules that the test cluster is not made of
    OPERATOR: OPERATOR_VERSION, CERT_MANAGER: CERT_MANAGER_VERSION, ENVOY: ENVOY_VERSION,
    TRAEFIK: TRAEFIK_VERSION,
}  # fmt: skip
CRDS = {  # module: where its CRDs of what the chart and docs/examples/edge have lie
    KSERVE: (
        "config/crd/full/serving.kserve.io_servingruntimes.yaml",
        "config/crd/full/serving.kserve.io_inferenceservices.yaml",
        "config/crd/full/localmodel/serving.kserve.io_localmodelcaches.yaml",
    ),
    CERT_MANAGER: (
        "deploy/crds/cert-manager.io_certificates.yaml",
        "deploy/crds/cert-manager.io_issuers.yaml",
    ),
    GATEWAY: tuple(
        f"config/crd/standard/gateway.networking.k8s.io_{name}.yaml"
        for name in ("httproutes", "grpcroutes", "gateways", "gatewayclasses")
    ),
    ENVOY: tuple(
        "charts/gateway-helm/charts/crds/crds/generated/" + f"gateway.envoyproxy.io_{name}.yaml"
        for name in ("clienttrafficpolicies", "securitypolicies")
    ),
    TRAEFIK: tuple(
        f"docs/content/reference/dynamic-configuration/traefik.io_{name}.yaml"
        for name in ("ingressroutes", "middlewares", "tlsoptions")
    ),
    OPERATOR: (
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
}
EDGE = (CERT_MANAGER, ENVOY, TRAEFIK)
"""Of docs/examples/edge; those of the Gateway API every cluster of the suite has."""


def module_version(module: str) -> str:
    """The version of a module: KServe's is that of the cluster's controller."""
    if module in OWN_VERSIONS:
        return OWN_VERSIONS[module]
    found = re.search(rf"^\s*{module} (v\S+)", (recipe.BUILD / "go.mod").read_text(), re.MULTILINE)
    assert found is not None, f"go.mod names no {module}"
    return found.group(1)


def folder(module: str) -> Path:
    """The copied CRDs of a module; downloads them once. Raises `ClusterError` if it can't."""
    version = module_version(module)
    kept = cache() / "crd" / f"{module.removeprefix('github.com/').replace('/', '-')}-{version}"
    with one_at_a_time(cache() / "crd"):
        if all((kept / Path(path).name).exists() for path in CRDS[module]):
            return kept
        said = run_go(find_go(), ["mod", "download", "-json", f"{module}@{version}"])
        source = Path(json.loads(said)["Dir"])
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=kept.parent))
        for path in CRDS[module]:
            shutil.copyfile(source / path, beside / Path(path).name)
        shutil.rmtree(kept, ignore_errors=True)
        beside.rename(kept)
    return kept


def fetch_all() -> None:
    """Have all of them in the machine's cache: a cluster has no way out to get them. Raises
    `ClusterError`."""
    for module in CRDS:
        folder(module)
