"""Fixtures of the tests on a cluster: a cluster that can be reached, a namespace per file with
the embedded checkpoints in a claim, and what is kept to find a failure's cause.

The cluster is whatever KUBECONFIG names. Nothing is skipped when it is missing: the tests fail with
a sentence that says what to do.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.image import places
from tests.e2e.kube import CommandFailed, Kube, run

TEST_TIMEOUT_S = 420  # a module's first test installs what all of them share
ROOT = Path(__file__).resolve().parents[2]
ENFORCED = {"pod-security.kubernetes.io/enforce": "restricted"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "supervisor: stops a component of tests/e2e/cluster")
    config.addinivalue_line("markers", "full: too long for every commit, see `make e2e-full`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cluster_up" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


@pytest.fixture(scope="session")
def cluster_up() -> None:
    """Fails unless kubectl, helm and the cluster's own network can be reached from here."""
    missing = [tool for tool in ("kubectl", "helm") if shutil.which(tool) is None]
    if "KUBECONFIG" not in os.environ or missing:
        pytest.fail(
            "these tests need a cluster: `make e2e`, or KUBECONFIG, kubectl and helm of your own"
            f" (missing: {', '.join(missing) or 'KUBECONFIG'})"
        )
    api = json.loads(run("kubectl", "-n", "default", "get", "service", "kubernetes", "-o", "json"))
    try:
        socket.create_connection((api["spec"]["clusterIP"], 443), timeout=5).close()
    except OSError as error:
        pytest.fail(
            f"cluster addresses can't be reached from here ({error}): run the tests in the network"
            " namespace of a node, as `make e2e` does"
        )


@pytest.fixture(scope="session")
def kept() -> Path:
    """The folder for logs and records: E2E_OUT, else out/e2e."""
    folder = Path(os.environ.get("E2E_OUT", ROOT / "out" / "e2e"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def weights() -> Path:
    """The checkpoints in a folder that the node sees and that its pods may read.

    E2E_CHECKPOINTS names one on a cluster that does not see this machine's disk (kind's
    `extraMounts`); otherwise a copy is made in the machine's cache.
    """
    if given := os.environ.get("E2E_CHECKPOINTS"):
        return Path(given)
    copy = places.cache() / "checkpoints"
    shutil.rmtree(copy, ignore_errors=True)
    for name in ("shapes-flux", "shapes-loras", "shapes-qwen-vl"):
        shutil.copytree(ROOT / "checkpoints" / name, copy / name)
    run("chmod", "-R", "a+rX", str(copy))
    return copy


@pytest.fixture(scope="module")
def kube(
    cluster_up: None, weights: Path, kept: Path, request: pytest.FixtureRequest
) -> Iterator[Kube]:
    """A namespace of this file's own, held to the restricted Pod Security, with the claim
    `checkpoints`; all of it goes afterwards. A test that fails leaves a report of it in `kept`."""
    stem = request.module.__name__.rpartition(".")[2]
    base = re.sub("[^a-z0-9]+", "-", stem.removeprefix("test_"))
    kube = Kube(f"e2e-{base}-{secrets.token_hex(2)}")
    space = {"name": kube.namespace, "labels": ENFORCED}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": space})
    kube.apply(*claim(kube.namespace, weights))
    yield kube
    # nothing waits for it, and no pod takes processor time of the next file's: 11 to 23 s each
    run("kubectl", "delete", "namespace", kube.namespace, "--wait=false", timeout_s=60)
    kube("delete", "pods", "--all", "--force", "--grace-period=0", "--wait=false")
    run("kubectl", "delete", "pv", kube.namespace, "--ignore-not-found", "--wait=false")


def claim(namespace: str, folder: Path, name: str = "checkpoints") -> list[dict[str, Any]]:
    """A volume on a folder of the node, and a claim that is bound to it and nothing else."""
    size = {"storage": "1Gi"}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": namespace},
        "spec": {
            "capacity": size,
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
            "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(folder)},
            "claimRef": {"namespace": namespace, "name": name},
        },
    }
    asked = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": namespace,
            "resources": {"requests": size},
        },
    }
    return [volume, asked]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep a report of the namespace at the moment when a test fails."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    funcargs = getattr(item, "funcargs", {})
    if report.failed and "kube" in funcargs and "kept" in funcargs:
        try:
            shown = funcargs["kube"].report()
        except CommandFailed as error:
            shown = str(error)
        (funcargs["kept"] / f"{item.name}.failed.txt").write_text(shown)
