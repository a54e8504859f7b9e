"""The number of a model's pods while it is scaled, and the load that scales it."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from tests.e2e import asks
from tests.e2e.kube import Kube, until
from tests.e2e.one_model import MODEL
from tests.e2e.traffic import Traffic, over_http

STEPS = 28


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
