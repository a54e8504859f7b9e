"""The number of a model's pods while it is scaled, the load that scales it, and the times of KEDA
that neither KServe nor the chart can say."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.e2e import asks
from tests.e2e.kube import Kube, run, until
from tests.e2e.one_model import MODEL
from tests.e2e.traffic import Traffic, over_http

STEPS = 28
CRD = "scaledobjects.keda.sh"


@contextmanager
def keda_times(seconds: Mapping[str, int]) -> Iterator[None]:
    """`pollingInterval`, `cooldownPeriod` of every ScaledObject that is written meanwhile.

    KServe writes ScaledObjects over, so they become defaults of their CRD.
    """
    crd = json.loads(run("kubectl", "get", "crd", CRD, "-o", "json"))
    (version,) = [i for i, v in enumerate(crd["spec"]["versions"]) if v["name"] == "v1alpha1"]
    at = f"/spec/versions/{version}/schema/openAPIV3Schema/properties/spec/properties"

    def patch(operation: str) -> None:
        changes = [
            {"op": operation, "path": f"{at}/{key}/default", "value": value}
            for key, value in seconds.items()
        ]
        run("kubectl", "patch", "crd", CRD, "--type=json", "-p", json.dumps(changes))

    patch("add")
    try:
        yield
    finally:
        patch("remove")


def replicas(kube: Kube) -> tuple[int, int]:
    """How many pods are wanted, and how many are ready."""
    deployment = kube.get("deployment", f"{MODEL}-predictor")
    return deployment["spec"].get("replicas", 1), deployment["status"].get("readyReplicas", 0)


def reach(kube: Kube, count: int, timeout_s: float) -> float:
    """Seconds until exactly `count` pods are wanted and ready."""
    began = time.monotonic()
    seen: list[tuple[int, int]] = []

    def is_reached() -> bool:
        seen.append(replicas(kube))
        return seen[-1] == (count, count)

    try:
        until(f"{count} replicas", is_reached, timeout_s)
    except AssertionError as error:
        scalers = [each.get("status") for each in kube.list("horizontalpodautoscalers")]
        raise AssertionError(f"{error}; the last replicas {seen[-5:]}; {scalers}") from None
    return time.monotonic() - began


async def draw_slowly(http: httpx.AsyncClient, question: str) -> None:
    """One picture of many steps, so that requests run and wait while Prometheus looks."""
    body = asks.picture_body(128, 128, STEPS)
    reply = await http.post(
        f"/v2/models/{MODEL}/infer", json=body, headers={asks.REQUEST_ID: question}
    )
    asks.check_png(asks.png_of(asks.checked(reply)), 128, 128)


def load(kube: Kube, kept: Path, clients: int, name: str = "autoscaling") -> Traffic:
    """That many clients that draw without a pause."""
    dial = over_http(kube.url(MODEL), draw_slowly, timeout_s=90)
    saved = kept / f"{name}-{clients}.traffic.jsonl"
    return Traffic(dial, clients=clients, pooled=False, pause_s=0.0, timeout_s=90, saved=saved)
