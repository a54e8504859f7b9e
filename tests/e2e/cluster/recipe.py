"""Sources of the cluster's binaries: components, versions, the hash that names a build,
and the manifests that are copied out of the modules. Pure but for reading the build folder; builds
nothing.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).resolve().parent / "build"
SOURCE_SUFFIXES = {".go", ".mod", ".sum"}

KUBERNETES = "v1.34.4"
VERSION_PACKAGE = "k8s.io/component-base/version"
LINK_FLAGS = " ".join(
    [
        "-s -w",
        f"-X {VERSION_PACKAGE}.gitVersion={KUBERNETES}",
        f"-X {VERSION_PACKAGE}.gitMajor=1",
        f"-X {VERSION_PACKAGE}.gitMinor=34",
    ]
)
GO_FLAGS = ("-trimpath", f"-ldflags={LINK_FLAGS}")


@dataclass(frozen=True)
class Binary:
    """One `go build`: the package, and the name under which the cluster knows the result."""

    name: str
    package: str
    title: str


BINARIES = (
    Binary("kube", "./cmd/kube", f"Kubernetes {KUBERNETES}, etcd and kubectl"),
    Binary("dns", "./cmd/dns", "CoreDNS"),
    Binary("pause", "./cmd/tiny", "the pause process"),
    Binary("helm", "helm.sh/helm/v3/cmd/helm", "Helm"),
    Binary("kserve-manager", "github.com/kserve/kserve/cmd/manager", "KServe's controller"),
    Binary("keda-operator", "github.com/kedacore/keda/v2/cmd/operator", "KEDA's operator"),
    Binary("keda-adapter", "github.com/kedacore/keda/v2/cmd/adapter", "KEDA's metrics adapter"),
    Binary("metrics-server", "sigs.k8s.io/metrics-server/cmd/metrics-server", "metrics-server"),
)
NAMES = tuple(binary.name for binary in BINARIES)


@dataclass(frozen=True)
class Manifests:
    """Files that a module brings: glob patterns inside it, and the folder they are copied to."""

    folder: str
    module: str
    patterns: tuple[str, ...]
    title: str


MANIFESTS = (
    Manifests(
        "kserve-crd",
        "github.com/kserve/kserve",
        (
            "config/crd/full/serving.kserve.io_*.yaml",
            "config/crd/full/clusterstoragecontainer/serving*.yaml",
            "config/crd/full/localmodel/serving*.yaml",
        ),
        "KServe's CRDs",
    ),
    Manifests(
        "kserve",
        "github.com/kserve/kserve",
        (
            "config/webhook/manifests.yaml",
            "config/configmap/inferenceservice.yaml",
            "config/rbac/role.yaml",
        ),
        "KServe's webhooks, role and config map",
    ),
    Manifests(
        "keda-crd",
        "github.com/kedacore/keda/v2",
        ("config/crd/bases/*.yaml",),
        "KEDA's CRDs",
    ),
    Manifests(
        "keda",
        "github.com/kedacore/keda/v2",
        (
            "config/rbac/role.yaml",
            "config/rbac/role_binding.yaml",
            "config/metrics-server/role.yaml",
            "config/metrics-server/role_binding.yaml",
            "config/metrics-server/api_service.yaml",
        ),
        "KEDA's roles and API service",
    ),
    Manifests(
        "metrics-server-manifests",
        "sigs.k8s.io/metrics-server",
        ("manifests/base/rbac.yaml", "manifests/base/apiservice.yaml"),
        "metrics-server's roles and API service",
    ),
    Manifests(
        "gateway-crd",
        "sigs.k8s.io/gateway-api",
        ("config/crd/standard/gateway.networking.k8s.io_[!v]*.yaml",),
        "the Gateway API's CRDs",
    ),
)


def build_hash(folder: Path = BUILD) -> str:
    """Twelve hex digits over everything that decides what comes out of a build."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in SOURCE_SUFFIXES):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update(repr((BINARIES, MANIFESTS, GO_FLAGS)).encode())
    return digest.hexdigest()[:12]


def needed_go(folder: Path = BUILD) -> tuple[int, ...]:
    """The Go version that go.mod asks for."""
    found = re.search(r"^go ([0-9.]+)$", (folder / "go.mod").read_text(), re.MULTILINE)
    assert found is not None, "go.mod says which Go it needs"
    return as_version(found.group(1))


def as_version(text: str) -> tuple[int, ...]:
    """`1.25.8` as numbers."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def wanted_binaries(only: str | None, present: set[str]) -> list[Binary]:
    """Binaries to build: of all, or of those named with commas, what is not present.

    `kubectl` is `kube` under another name. Raises ValueError naming what is not known.
    """
    names = set(NAMES) if only is None else {name.strip() for name in only.split(",")}
    names = {"kube" if name == "kubectl" else name for name in names}
    unknown = names - set(NAMES)
    if unknown:
        raise ValueError(f"no such component: {', '.join(sorted(unknown))}; there are {NAMES}")
    return [b for b in BINARIES if b.name in names and b.name not in present]
