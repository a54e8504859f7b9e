"""A release of one model, the drawing one, and the traffic that asks it: what a test needs that
wants to see one Deployment change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e import asks
from tests.e2e.helm import Release, small
from tests.e2e.kube import CommandFailed, Kube, Object
from tests.e2e.traffic import Traffic, over_http

MODEL = "flux"


def values(*, model: dict[str, Any] | None = None, image: str = "", **defaults: Any) -> Any:
    """`flux` from the claim `checkpoints`; `model` adds to it, `defaults` to what all start from.

    A rollout surges unless `defaults` says otherwise: there is no GPU to wait for.
    """
    cpu = {"compute": {"device": "cpu"}}
    chosen = {"rollout": "surge", "settings": cpu, **defaults}
    own = {"format": "flux", "storage": {"uri": "pvc://checkpoints/shapes-flux"}, **(model or {})}
    return {**small(image, **chosen), "models": {MODEL: own}, "tests": {"enabled": False}}


@contextmanager
def installed(kube: Kube, given: Any, name: str = "one") -> Iterator[Release]:
    """A release with these values, uninstalled afterwards. Nothing waits for its pods, which end
    with the namespace: a second one in the same namespace needs another name."""
    release = Release(name, kube.namespace)
    release.install([], given)
    try:
        yield release
    finally:
        release.uninstall(wait=False)


def drawing(kube: Kube, kept: Path, name: str, clients: int = 2) -> Traffic:
    """Clients that open a connection per picture, as behind a gateway that balances."""
    dial = over_http(kube.url(MODEL), asks.draw)
    return Traffic(dial, clients=clients, pooled=False, saved=kept / f"{name}.traffic.jsonl")


def waiting_reason(pod: Object) -> str:
    """Why a container of the pod does not run: `CrashLoopBackOff`, `ErrImageNeverPull`, ..."""
    for each in pod.get("status", {}).get("containerStatuses", []):
        if reason := each.get("state", {}).get("waiting", {}).get("reason", ""):
            return str(reason)
    return ""


def events_of(kube: Kube, kind: str, name: str) -> list[Object]:
    """The events about one object, oldest first."""
    chosen = f"involvedObject.kind={kind},involvedObject.name={name}"
    try:
        listed = kube("get", "events", f"--field-selector={chosen}", "-o", "json")
    except CommandFailed:
        return []
    found: list[Object] = json.loads(listed)["items"]
    return sorted(found, key=lambda event: str(event["metadata"]["creationTimestamp"]))
