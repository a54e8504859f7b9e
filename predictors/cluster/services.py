"""The state of the chart's InferenceServices and of their pods, read from the Kubernetes API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from predictors.cluster.api import ApiRefusal, ApiUnavailable, KubernetesApi

SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices"
PODS = "/api/v1/namespaces/{}/pods"
OWNER = "serving.kserve.io/inferenceservice"
WARM_UP = "predictors.vision/warm-up"
WAITING = re.compile(r"^predictors_requests_waiting\{[^}\n]*\} ([0-9.e+]{1,20})$", re.MULTILINE)
METRICS_PORTS = ("metrics", "http", "http1", "h2c", "user-port")
DEFAULT_PORT = 8080
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class PodState:
    """One pod. `waiting` counts the jobs in its queues; None if its metrics can't be reached."""

    name: str
    phase: str
    is_ready: bool
    restarts: int
    warm_up: str
    waiting: int | None


@dataclass(frozen=True, slots=True)
class ServiceState:
    """One InferenceService. `reason` is that of a condition that is not true."""

    name: str
    is_ready: bool
    phase: str
    reason: str
    url: str
    pods: tuple[PodState, ...] = field(default=())


def open_kubeconfig(
    file: Path | None, context: str | None, timeout_s: float
) -> tuple[KubernetesApi, str]:
    """The API of a kubeconfig's context, and the context's namespace. Raises `ApiUnavailable`."""
    from kubernetes.client.configuration import Configuration
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.config.kube_config import list_kube_config_contexts, load_kube_config
    from yaml import YAMLError

    configuration, name = Configuration(), str(file) if file else None
    try:
        contexts, active = list_kube_config_contexts(name)
        load_kube_config(name, context, client_configuration=configuration)
    except (ConfigException, YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ApiUnavailable("no usable kubeconfig") from error
    chosen = next((each for each in contexts if each.get("name") == context), active)
    namespace = chosen.get("context", {}).get("namespace") or "default"
    return KubernetesApi(configuration, timeout_s), str(namespace)


def read_services(api: KubernetesApi, namespace: str, selector: str) -> list[ServiceState]:
    """The services with these labels, by name. Raises `ApiUnavailable` or `ApiRefusal`."""
    found = api.get(f"{SERVICES.format(namespace)}?{urlencode({'labelSelector': selector})}")
    pods = api.get(f"{PODS.format(namespace)}?{urlencode({'labelSelector': OWNER})}")
    by_owner: dict[str, list[PodState]] = {}
    for pod in items_of(pods):
        owner = part(pod, "metadata", "labels").get(OWNER, "")
        by_owner.setdefault(str(owner), []).append(pod_state(api, namespace, pod))
    states = [service_state(each, by_owner) for each in items_of(found)]
    return sorted(states, key=lambda state: state.name)


def items_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    items = found.get("items")
    return [each for each in items if isinstance(each, dict)] if isinstance(items, list) else []


def part(found: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A nested object, or an empty one."""
    for name in names:
        inner = found.get(name)
        found = inner if isinstance(inner, dict) else {}
    return found


def service_state(
    found: Mapping[str, Any], by_owner: Mapping[str, Sequence[PodState]]
) -> ServiceState:
    name, status = str(part(found, "metadata").get("name", "")), part(found, "status")
    conditions = {str(each.get("type")): each for each in _rows(status, "conditions")}
    ready = conditions.get("Ready", {})
    states = part(status, "modelStatus", "states")
    wrong = next((each for each in conditions.values() if each.get("status") == "False"), {})
    return ServiceState(
        name,
        ready.get("status") == "True",
        str(states.get("activeModelState") or states.get("targetModelState") or "-"),
        str(wrong.get("reason") or wrong.get("message") or ""),
        str(status.get("url", "")),
        tuple(by_owner.get(name, ())),
    )


def pod_state(api: KubernetesApi, namespace: str, pod: Mapping[str, Any]) -> PodState:
    metadata, status = part(pod, "metadata"), part(pod, "status")
    containers = _rows(status, "containerStatuses")
    ready = [each for each in _rows(status, "conditions") if each.get("type") == "Ready"]
    name, phase = str(metadata.get("name", "")), str(status.get("phase", "-"))
    return PodState(
        name,
        phase,
        any(each.get("status") == "True" for each in ready),
        sum(int(each.get("restartCount") or 0) for each in containers),
        str(part(metadata, "annotations").get(WARM_UP, "")),
        _waiting(api, namespace, name, pod) if phase == "Running" else None,
    )


def _rows(found: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    return items_of({"items": found.get(name)})


def _waiting(api: KubernetesApi, namespace: str, name: str, pod: Mapping[str, Any]) -> int | None:
    """Jobs in the queues of a pod, through the API server's proxy."""
    containers = _rows(part(pod, "spec"), "containers")
    named = [port for each in containers for port in _rows(each, "ports")]
    ports = {each.get("name"): each.get("containerPort") for each in named}
    port = next((ports[each] for each in METRICS_PORTS if each in ports), DEFAULT_PORT)
    try:
        text = api.get_text(f"{PODS.format(namespace)}/{name}:{port}/proxy/metrics")
    except (ApiUnavailable, ApiRefusal):
        return None
    values = WAITING.findall(text)
    return round(sum(map(float, values))) if values else None
