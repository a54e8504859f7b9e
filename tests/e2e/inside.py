"""A pod of the cluster that runs a few lines of Python and says what they printed.

It is the product's image, which has Python and httpx, held to the restricted Pod Security; so names
are looked up and services reached as any other workload of the namespace does.
"""

from __future__ import annotations

import secrets
from typing import Any

from tests.e2e.helm import server_image
from tests.e2e.kube import Kube, until

PATIENCE_S = 90.0

STREAM = """
import json, sys, httpx
url, body = sys.argv[1], json.loads(sys.argv[2])
with httpx.stream("POST", url, json=body, timeout=60) as reply:
    print(reply.status_code)
    for line in reply.iter_lines():
        if line:
            print(line)
"""
"""Posts JSON (the second argument) to a URL (the first); prints the status, then each line."""


def run_inside(kube: Kube, script: str, *argv: str) -> str:
    """The output of `script` in a pod of its own; raises AssertionError when it failed."""
    name = f"asks-{secrets.token_hex(2)}"
    kube.apply(pod(name, script, argv))

    def probe() -> str | None:
        phase = kube.get("pod", name)["status"].get("phase", "")
        return phase if phase in {"Succeeded", "Failed"} else None

    try:
        phase = until(f"{name} has ended", probe, PATIENCE_S)
        printed = kube("logs", name)
    finally:
        kube("delete", "pod", name, "--wait=false")
    assert phase == "Succeeded", printed
    return printed


def pod(name: str, script: str, argv: tuple[str, ...]) -> dict[str, Any]:
    """The pod that runs it once."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "asks",
                    "image": server_image(),
                    "imagePullPolicy": "Never",
                    "command": ["python", "-c", script, *argv],
                    "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                }
            ],
        },
    }
