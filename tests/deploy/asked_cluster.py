"""A cluster that Helm asks while it renders: an API server that knows InferenceServices alone, and
has those of the test.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.chart import CHART, KUBERNETES, arguments, binary

KSERVE = "serving.kserve.io/v1beta1"


@contextmanager
def cluster(folder: Path, services: dict[str, Any]) -> Iterator[Path]:
    """A kubeconfig of an API server that knows one kind, and has these InferenceServices."""
    kind = {"name": "inferenceservices", "singularName": "", "namespaced": True,
            "kind": "InferenceService", "verbs": ["get", "list"]}  # fmt: skip
    versions = [{"groupVersion": KSERVE, "version": "v1beta1"}]
    group = {"name": "serving.kserve.io", "versions": versions, "preferredVersion": versions[0]}
    said: dict[str, Any] = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]},
        f"/apis/{KSERVE}": {
            "kind": "APIResourceList", "groupVersion": KSERVE, "resources": [kind],
        },
    }  # fmt: skip
    for name, status in services.items():
        metadata = {"name": name, "namespace": "demo"}
        said[f"/apis/{KSERVE}/namespaces/demo/inferenceservices/{name}"] = {
            "apiVersion": KSERVE, "kind": "InferenceService", "metadata": metadata, **status,
        }  # fmt: skip

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = said.get(self.path.partition("?")[0])
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                       "reason": "NotFound"}  # fmt: skip
            text = json.dumps(missing if found is None else found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        config = folder / "config"
        config.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "one",
            "clusters": [{"name": "one", "cluster": {
                "server": f"http://127.0.0.1:{server.server_address[1]}"}}],
            "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
            "users": [{"name": "one", "user": {}}],
        }))  # fmt: skip
        try:
            yield config
        finally:
            server.shutdown()
            thread.join()


def render_in(
    folder: Path, services: dict[str, Any], values: str, *sets: str
) -> subprocess.CompletedProcess[str]:
    """Helm's output as for an upgrade of a release in the namespace `demo`."""
    with cluster(folder, services) as config:
        return subprocess.run(
            [binary("helm"), "template", "predictors", str(CHART), "-n", "demo",
             "--dry-run=server", "--kube-version", KUBERNETES, "--api-versions", KSERVE,
             *arguments(values, sets=sets)],
            env={**os.environ, "KUBECONFIG": str(config), "HOME": str(folder)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
