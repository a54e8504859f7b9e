"""The verb `activator`: one proxy process before one model, with the rights of its pod's
ServiceAccount on the scale of the model's Deployment.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

from predictors import metrics
from predictors.cluster.api import ApiUnavailable, KubernetesApi
from predictors.cluster.identity import require_pod_identity
from predictors.cluster.scaling import DeploymentScale
from predictors.cluster.services import NAMESPACE as LABEL
from predictors.environment import from_env
from predictors.errors import InvalidRequest
from predictors.observe import logs
from predictors.settings import InvalidSetting

_TARGET = re.compile(
    r"([0-9A-Za-z](?:[0-9A-Za-z.-]{0,251}[0-9A-Za-z])?|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?"
)
"""A host name or an address, that of IPv6 in brackets, with or without a port."""


def activator(arguments: argparse.Namespace) -> int:
    """Stand before a model that may be scaled to zero: hold requests while it has no pod, wake it
    by the scale API, and pass requests on, over HTTP/1.1 and gRPC. For a pod: the ServiceAccount
    needs `get` and `patch` on `deployments/scale` of the Deployment."""
    from predictors.activator.http_proxy import HttpAddress
    from predictors.activator.server import ActivatorServer, Upstream
    from predictors.protocol.http.connection_limits import raise_file_limit

    settings = from_env(arguments.environ)
    own = settings.server
    logs.configure_logging(
        own.log_format, own.log_level, on_drop=metrics.log_records_dropped_total.inc
    )
    target = check_target(arguments.grpc_upstream)
    upstream = Upstream(arguments.model, HttpAddress(*read_address(arguments.upstream)), target)
    if not LABEL.fullmatch(arguments.deployment):
        raise InvalidRequest(f"--deployment: {arguments.deployment!r} is no name of a Deployment")
    identity = require_pod_identity(arguments.environ)
    try:
        api = KubernetesApi.of_pod(identity, settings.cluster.timeout_s)
    except ApiUnavailable as error:
        raise InvalidSetting(f"the ServiceAccount's files can't be used: {error}") from error
    scale = DeploymentScale(api, identity.namespace, arguments.deployment)
    raise_file_limit()
    logs.redirect_library_handlers()
    with ThreadPoolExecutor(1, "scale") as thread:

        async def raise_from_zero() -> bool:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(thread, scale.raise_from_zero)

        try:
            return ActivatorServer(upstream, settings, raise_from_zero).run()
        finally:
            api.close()


def read_address(url: str) -> tuple[str, int]:
    """Host and port of `http://HOST[:PORT]`. Raises `InvalidRequest` for anything else."""
    found = _read_target(url.removeprefix("http://").removesuffix("/"))
    if found is None or not url.startswith("http://"):
        raise InvalidRequest(
            f"--upstream takes http://HOST or http://HOST:PORT, without a path, not {url[:200]!r}; "
            "TLS between activator and model is not offered"
        )
    return found[0].strip("[]"), found[1] or 80


def check_target(target: str) -> str:
    """`HOST:PORT`, or empty for no gRPC. Raises `InvalidRequest` for anything else."""
    found = _read_target(target)
    if target and (found is None or not found[1]):
        raise InvalidRequest(f"--grpc-upstream takes HOST:PORT, not {target[:200]!r}")
    return target


def _read_target(text: str) -> tuple[str, int | None] | None:
    """Host, and port if it is said; None for anything else."""
    found = _TARGET.fullmatch(text)
    if found is None or (found[2] and not 0 < int(found[2]) < 65536):
        return None
    return found[1], int(found[2]) if found[2] else None
