"""One API server, as a pod's ServiceAccount may use it: read, create and patch objects by path.
Knows the `kubernetes` client and two kinds of failure; not what the objects mean.

The client's generated classes are left alone: `CoreV1Api` imports 255 modules, half a second with
the interpreter's lock and 22 MB, while engines load. What is used is its configuration (token
renewal, certificates, proxies) and its transport.
"""

from __future__ import annotations

import json
from typing import Any

from predictors.cluster.account import HOST, PORT, Account

MERGE = "application/merge-patch+json"
TRANSIENT = {401, 408, 429}
"""Statuses below 500 that another try may not meet: a token is renewed, a rush ends."""


class Unreachable(Exception):
    """The API server gave no answer, or one that may be another one later."""


class Refused(Exception):
    """The API server said no, and will say it again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """Blocks for at most about `timeout_s` per wait of each call: for a thread of its own."""

    def __init__(self, account: Account, timeout_s: float) -> None:
        from kubernetes.client.api_client import ApiClient
        from kubernetes.client.configuration import Configuration
        from kubernetes.config.config_exception import ConfigException
        from kubernetes.config.incluster_config import InClusterConfigLoader

        configuration = Configuration()
        configuration.retries = False  # to urllib3: never, and never tell
        loader = InClusterConfigLoader(
            token_filename=str(account.token),
            cert_filename=str(account.authority),
            environ={HOST: account.host, PORT: account.port},
        )
        try:
            loader.load_and_set(configuration)
        except (ConfigException, OSError) as error:
            raise Unreachable(str(error)) from error
        self._client = ApiClient(configuration)
        self._timeout_s = timeout_s

    def get(self, path: str) -> dict[str, Any]:
        """The object at `path`. Raises `Unreachable`, `Refused`; so do the others."""
        return self._call("GET", path)

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A new object in the collection at `path`."""
        return self._call("POST", path, body, "application/json")

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Change the fields in `body` of the object at `path`, and no others."""
        return self._call("PATCH", path, body, MERGE)

    def close(self) -> None:
        """Close idle connections."""
        self._client.rest_client.close()

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, kind: str = ""
    ) -> dict[str, Any]:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json"} | ({"Content-Type": kind} if kind else {})
        try:
            request = self._client.param_serialize(
                method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = self._client.call_api(*request, _request_timeout=self._timeout_s)
            content = response.read()
        except (ApiException, HTTPError, OSError) as error:
            raise Unreachable(_in_short(error)) from error
        return _object(int(response.status), content)


def _object(status: int, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unreachable(f"status {status} without an object: is this the API server?")
    if status in TRANSIENT or status >= 500:
        raise Unreachable(f"{status}: {found.get('message', '')}")
    if status >= 300:
        raise Refused(status, str(found.get("message", "")))
    return found


def _in_short(error: Exception) -> str:
    """The last sentence of a chain of wrapped errors, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
