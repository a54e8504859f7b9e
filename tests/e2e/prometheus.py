"""A real Prometheus (Debian's) beside the test, that scrapes a namespace's pods every second.

Debian builds it without Kubernetes' discovery, so a thread lists the pods each second and writes
the addresses into a file that Prometheus watches.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.kube import CommandFailed, Kube, until

PORT = 19090
METRICS_PORT = 9090  # the chart's `metrics.port`


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


def targets(kube: Kube) -> list[dict[str, Any]]:
    """Each pod that serves a model or stands before one, with the labels that the chart's
    PodMonitors give."""
    chosen = ("serving.kserve.io/inferenceservice", "app.kubernetes.io/component=activator")
    return [
        {
            "targets": [f"{pod['status']['podIP']}:{METRICS_PORT}"],
            "labels": {"namespace": kube.namespace, "pod": pod["metadata"]["name"]},
        }
        for selector in chosen
        for pod in kube.list("pods", selector)
        if pod["status"].get("podIP") and pod["status"]["phase"] == "Running"
    ]


def keep_listed(kube: Kube, listed: Path, stopping: threading.Event) -> None:
    """Write the targets once a second until stopped."""
    while not stopping.wait(1.0):
        beside = listed.with_suffix(".new")
        try:
            beside.write_text(json.dumps(targets(kube)))
        except CommandFailed:
            continue  # the next second
        beside.rename(listed)


def configuration(listed: Path, static: dict[str, str]) -> dict[str, Any]:
    """The configuration of Prometheus: the file of pods, and `static` job: address."""
    files = [{"files": [str(listed)], "refresh_interval": "1s"}]
    pods = {"job_name": "pods", "file_sd_configs": files}
    others = [
        {"job_name": job, "static_configs": [{"targets": [address]}]}
        for job, address in static.items()
    ]
    times = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    return {"global": times, "scrape_configs": [pods, *others]}


@contextmanager
def scraping(kube: Kube, static: dict[str, str], folder: Path) -> Iterator[Prometheus]:
    """A Prometheus while the body runs; its log is `folder`/prometheus.log."""
    binary = shutil.which("prometheus")
    assert binary is not None, "prometheus is needed: Debian's package of that name"
    written, listed = folder / "prometheus.json", folder / "pods.json"  # JSON is YAML
    written.write_text(json.dumps(configuration(listed, static)))
    listed.write_text("[]")
    stopping = threading.Event()
    lister = threading.Thread(target=keep_listed, args=(kube, listed, stopping), daemon=True)
    lister.start()
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
            stopping.set()
            process.terminate()
            process.wait(20)
            lister.join(60)


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    """True if the address answers 200; fails when the process has ended."""
    assert process.poll() is None, "Prometheus ended: see prometheus.log"
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
