"""The identity of the pod and the credentials of its ServiceAccount, from the environment and the
files that Kubernetes mounts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from predictors.settings import ClusterSettings, InvalidSetting

MOUNTED_AT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOST = "KUBERNETES_SERVICE_HOST"
PORT = "KUBERNETES_SERVICE_PORT"


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """Names of this pod, address of the API server and the ServiceAccount's files."""

    folder: Path
    """Holds `token` and `ca.crt`. Kubernetes renews the token there."""
    host: str
    port: str
    namespace: str
    pod: str
    service: str
    """Name of the pod's InferenceService; empty if it has none."""

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.crt"


def find_pod_identity(
    settings: ClusterSettings, environ: Mapping[str, str], folder: Path = MOUNTED_AT
) -> PodIdentity | None:
    """The identity to report with, or None if nothing is reported.

    Raises `InvalidSetting` if `cluster.events` is `on` and something is missing.
    """
    if settings.events == "off":
        return None
    identity = _read_identity(environ, folder)
    missing = _missing(identity)
    if missing and settings.events == "on":
        raise InvalidSetting(f"PREDICTORS_CLUSTER_EVENTS is on, but there is no {missing}")
    return None if missing else identity


def require_pod_identity(environ: Mapping[str, str], folder: Path = MOUNTED_AT) -> PodIdentity:
    """The identity of a process that can't work without the Kubernetes API. Raises
    `InvalidSetting` if something is missing."""
    identity = _read_identity(environ, folder)
    if missing := _missing(identity):
        raise InvalidSetting(f"the Kubernetes API is needed, but there is no {missing}")
    return identity


def _read_identity(environ: Mapping[str, str], folder: Path) -> PodIdentity:
    return PodIdentity(
        folder=folder,
        host=environ.get(HOST, ""),
        port=environ.get(PORT, ""),
        namespace=environ.get("POD_NAMESPACE", "") or _first_line(folder / "namespace"),
        # a pod's host name is its own unless it shares the node's network
        pod=environ.get("POD_NAME", "") or environ.get("HOSTNAME", ""),
        service=environ.get("INFERENCE_SERVICE_NAME", ""),
    )


def _missing(identity: PodIdentity) -> str:
    """A description of the first required part that is absent; empty if none is."""
    if not _first_line(identity.token_file) or not _first_line(identity.ca_file):
        return f"ServiceAccount token and ca.crt in {identity.folder}"
    if not identity.host or not identity.port:
        return f"{HOST} and {PORT} in the environment"
    if not identity.pod or not identity.namespace:
        return "POD_NAME and POD_NAMESPACE in the environment"
    return ""


def _first_line(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        return ""
