"""Which pod this is and whose word it may speak: the ServiceAccount that Kubernetes mounts. Knows
the environment's names and the mounted files; talks to nobody.
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
class Account:
    """A ServiceAccount's files, the API server, and whom the events are about."""

    folder: Path
    """Where `token` and `ca.crt` lie; Kubernetes renews the token there."""
    host: str
    port: str
    namespace: str
    pod: str
    service: str
    """Name of the InferenceService that the pod belongs to; empty where it belongs to none."""

    @property
    def token(self) -> Path:
        """The file with the token."""
        return self.folder / "token"

    @property
    def authority(self) -> Path:
        """The file with the certificates that the API server's is checked against."""
        return self.folder / "ca.crt"


def find_account(
    settings: ClusterSettings, environ: Mapping[str, str], folder: Path = MOUNTED_AT
) -> Account | None:
    """The account to speak for, or None where nobody is to be told.

    Raises `InvalidSetting` when `cluster.events` is `on` and something is missing.
    """
    if settings.events == "off":
        return None
    account = Account(
        folder=folder,
        host=environ.get(HOST, ""),
        port=environ.get(PORT, ""),
        namespace=environ.get("POD_NAMESPACE", "") or _first_line(folder / "namespace"),
        # a pod's host name is its own unless it shares the node's network
        pod=environ.get("POD_NAME", "") or environ.get("HOSTNAME", ""),
        service=environ.get("INFERENCE_SERVICE_NAME", ""),
    )
    missing = _missing(account)
    if missing and settings.events == "on":
        raise InvalidSetting(f"PREDICTORS_CLUSTER_EVENTS is on, but there is no {missing}")
    return None if missing else account


def _missing(account: Account) -> str:
    """What can't be done without, in words; empty when all is there."""
    if not _first_line(account.token) or not _first_line(account.authority):
        return f"ServiceAccount token and ca.crt in {account.folder}"
    if not account.host or not account.port:
        return f"{HOST} and {PORT} in the environment"
    if not account.pod or not account.namespace:
        return "POD_NAME and POD_NAMESPACE in the environment"
    return ""


def _first_line(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        return ""
