"""A real Prometheus (Debian's) beside the test, that finds a namespace's pods by Kubernetes' own
discovery and scrapes them every second. Knows ports and labels, no series.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.e2e.kube import until

PORT = 19090
METRICS_PORT = 8080


class Prometheus:
    """One server; KEDA asks it at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def value(self, query: str) -> float:
        """The one value of a query; -1 where there is none."""
        asked = httpx.get(
            f"{self.url}/api/v1/query", params={"query": query}, timeout=5, trust_env=False
        )
        result: list[Any] = asked.raise_for_status().json()["data"]["result"]
        assert len(result) <= 1, result
        return float(result[0]["value"][1]) if result else -1.0


def configuration(namespace: str, static: dict[str, str]) -> dict[str, Any]:
    """What Prometheus reads: pods of the namespace that serve a model, and `static` job: address.

    The label `namespace` is what the chart's PodMonitor gives as well.
    """
    label = "__meta_kubernetes_pod_label_serving_kserve_io_inferenceservice"
    kept = [
        {"source_labels": [label], "action": "keep", "regex": ".+"},
        {
            "source_labels": ["__meta_kubernetes_pod_container_port_number"],
            "action": "keep",
            "regex": str(METRICS_PORT),
        },
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
    ]
    found = {
        "role": "pod",
        "kubeconfig_file": os.environ["KUBECONFIG"],
        "namespaces": {"names": [namespace]},
    }
    pods = {"job_name": "pods", "kubernetes_sd_configs": [found], "relabel_configs": kept}
    others = [
        {"job_name": job, "static_configs": [{"targets": [address]}]}
        for job, address in static.items()
    ]
    times = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    return {"global": times, "scrape_configs": [pods, *others]}


@contextmanager
def scraping(namespace: str, static: dict[str, str], folder: Path) -> Iterator[Prometheus]:
    """A Prometheus while the body runs; its log is `folder`/prometheus.log."""
    binary = shutil.which("prometheus")
    assert binary is not None, "prometheus is needed: Debian's package of that name"
    written = folder / "prometheus.json"  # JSON is YAML
    written.write_text(json.dumps(configuration(namespace, static)))
    assert yaml.safe_load(written.read_text())
    command = [
        binary,
        f"--config.file={written}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{PORT}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            server = Prometheus(f"http://127.0.0.1:{PORT}")
            until("Prometheus is ready", lambda: answers(f"{server.url}/-/ready", process), 30)
            yield server
        finally:
            process.terminate()
            process.wait(20)


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether somebody says 200 there; fails when the process has ended."""
    assert process.poll() is None, "Prometheus ended: see prometheus.log"
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
