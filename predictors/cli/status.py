"""The verb `status`: the chart's InferenceServices as a table or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from predictors.cli.endpoint import plain
from predictors.cli.outcomes import DONE, FAILED, NO_SERVER, REFUSED, VerbFailed, print_json
from predictors.cluster.api import ApiRefusal, ApiUnavailable
from predictors.cluster.services import (
    NAMESPACE,
    PodState,
    ServiceState,
    open_kubeconfig,
    read_services,
)

HEADS = ("NAME", "READY", "PHASE", "WARM-UP", "PODS", "RESTARTS", "QUEUE", "REASON")


def run_status(arguments: argparse.Namespace) -> int:
    """Print the services; the exit code is `FAILED` if there is none, or one is not ready."""
    try:
        api, own = open_kubeconfig(arguments.kubeconfig, arguments.context, arguments.timeout)
        namespace = arguments.namespace or own
        if not NAMESPACE.fullmatch(namespace):
            raise VerbFailed(f"{plain(namespace)[:100]!r} is no name of a namespace", REFUSED)
        try:
            services = read_services(api, namespace, arguments.selector)
        finally:
            api.close()
    except ApiUnavailable as error:
        exit_code = REFUSED if is_about_kubeconfig(error) else NO_SERVER
        raise VerbFailed(unavailable_words(error), exit_code) from error
    except ApiRefusal as error:
        raise VerbFailed(refusal_words(error), FAILED, status=error.status) from error
    if arguments.json:
        print_json({"namespace": namespace, "services": [asdict(each) for each in services]})
    else:
        sys.stdout.writelines(f"{line}\n" for line in status_lines(services, namespace))
    return DONE if services and all(each.is_ready for each in services) else FAILED


def is_about_kubeconfig(error: ApiUnavailable) -> bool:
    return "kubeconfig" in str(error)


def unavailable_words(error: ApiUnavailable) -> str:
    if is_about_kubeconfig(error):
        return "there is no usable kubeconfig, or no such context in it; see --kubeconfig"
    return "the Kubernetes API server does not answer, or does not take these credentials"


def refusal_words(error: ApiRefusal) -> str:
    if error.status == 404:
        return "this cluster has no InferenceServices: is KServe installed?"
    return f"the Kubernetes API server refuses with {plain(str(error))[:300]}"


def status_lines(services: Sequence[ServiceState], namespace: str) -> Iterator[str]:
    """A table with a row per service, and below it its pods if there are several."""
    if not services:
        yield f"no InferenceService of the chart in namespace {namespace}"
        return
    rows = [HEADS, *(row for each in services for row in service_rows(each))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def service_rows(service: ServiceState) -> Iterator[tuple[str, ...]]:
    pods = service.pods
    waiting = [pod.waiting for pod in pods if pod.waiting is not None]
    cells = (
        service.name,
        "yes" if service.is_ready else "no",
        service.phase,
        warm_ups(pods),
        f"{sum(pod.is_ready for pod in pods)}/{len(pods)}",
        str(sum(pod.restarts for pod in pods)),
        str(sum(waiting)) if waiting else "-",
        service.reason,
    )
    yield tuple(map(plain, cells))
    for pod in pods if len(pods) > 1 else ():
        queue = "-" if pod.waiting is None else str(pod.waiting)
        ready = "yes" if pod.is_ready else "no"
        shown = (f"  {pod.name}", ready, pod.phase, pod.warm_up or "-", "", str(pod.restarts))
        yield tuple(map(plain, (*shown, queue, "")))


def warm_ups(pods: Sequence[PodState]) -> str:
    """The progress of the pods that are not ready, else `ready`."""
    open_ones = [pod.warm_up for pod in pods if pod.warm_up and pod.warm_up != "ready"]
    return "; ".join(open_ones) or ("ready" if any(pod.warm_up for pod in pods) else "-")
