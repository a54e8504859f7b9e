"""Reads, creates and patches objects of the Kubernetes API by path, with the credentials of the
pod's ServiceAccount or of a kubeconfig.

Of the `kubernetes` client only the configuration (token renewal, certificates, proxies) and the
transport are used. Its generated classes are not: `CoreV1Api` imports 255 modules, which takes half
a second with the interpreter's lock and 22 MB while engines load.
"""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING, Any

from predictors.cluster.identity import HOST, PORT, PodIdentity

if TYPE_CHECKING:
    from kubernetes.client.configuration import Configuration

MERGE = "application/merge-patch+json"
TRANSIENT = {401, 408, 429}
"""Statuses below 500 that are retried: the token may be renewed, the load may end."""


class ApiUnavailable(Exception):
    """The API server gave no answer, or a temporary error. A retry may succeed."""


class ApiRefusal(Exception):
    """The API server refused the call; a retry would be refused too."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class KubernetesApi:
    """Each wait blocks for at most about `timeout_s`. For use on a thread of its own."""

    def __init__(self, configuration: Configuration, timeout_s: float) -> None:
        from kubernetes.client.api_client import ApiClient
        from urllib3.util.ssl_ import create_urllib3_context

        configuration.retries = False  # urllib3 neither retries nor logs retries
        self._client = ApiClient(configuration)
        # From Python 3.13 on, urllib3's own context refuses authorities without the extensions of
        # RFC 5280. Those of EKS, MicroK8s and older clusters are such, and kubectl takes them.
        context = create_urllib3_context(verify_flags=ssl.VERIFY_X509_PARTIAL_CHAIN)
        self._client.rest_client.pool_manager.connection_pool_kw["ssl_context"] = context
        self._timeout_s = timeout_s

    @classmethod
    def of_pod(cls, identity: PodIdentity, timeout_s: float) -> KubernetesApi:
        """With the credentials of the pod's ServiceAccount. Raises `ApiUnavailable`."""
        from kubernetes.client.configuration import Configuration
        from kubernetes.config.config_exception import ConfigException
        from kubernetes.config.incluster_config import InClusterConfigLoader

        configuration = Configuration()
        loader = InClusterConfigLoader(
            token_filename=str(identity.token_file),
            cert_filename=str(identity.ca_file),
            environ={HOST: identity.host, PORT: identity.port},
        )
        try:
            loader.load_and_set(configuration)
        except (ConfigException, OSError) as error:
            raise ApiUnavailable(str(error)) from error
        return cls(configuration, timeout_s)

    def get(self, path: str) -> dict[str, Any]:
        """The object at `path`. Raises `ApiUnavailable` or `ApiRefusal`, as do the other calls."""
        return self._call("GET", path)

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", path, body, "application/json")

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Change only the fields in `body` of the object at `path`."""
        return self._call("PATCH", path, body, MERGE)

    def get_text(self, path: str) -> str:
        """The text at `path`, such as a pod's metrics through the API server's proxy."""
        status, content = self._send("GET", path, None, "")
        if status != 200:
            raise ApiRefusal(status, "no text there")
        return content.decode(errors="replace")

    def close(self) -> None:
        self._client.rest_client.close()

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, kind: str = ""
    ) -> dict[str, Any]:
        return _object(*self._send(method, path, body, kind))

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None, kind: str
    ) -> tuple[int, bytes]:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json, */*"} | ({"Content-Type": kind} if kind else {})
        try:
            request = self._client.param_serialize(
                method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = self._client.call_api(*request, _request_timeout=self._timeout_s)
            content = response.read()
        except (ApiException, HTTPError, OSError) as error:
            raise ApiUnavailable(_one_line(error)) from error
        return int(response.status), content


def _object(status: int, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ApiUnavailable(f"status {status} without an object: is this the API server?")
    if status in TRANSIENT or status >= 500:
        raise ApiUnavailable(f"{status}: {found.get('message', '')}")
    if status >= 300:
        raise ApiRefusal(status, str(found.get("message", "")))
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
