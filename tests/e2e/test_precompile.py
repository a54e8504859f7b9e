"""The pre-compile Job: an upgrade rolls out onto a cache that is filled, and servers only read it.

The image computes on the CPU, where nothing is compiled: what is seen is the folder that the Job
makes, who may write it, and when the Job runs. That compiled code is found again is shown on a GPU.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.e2e.image import places
from tests.e2e.kube import CommandFailed, Kube, Object, name_of, until
from tests.e2e.one_model import MODEL, events_of, installed, values

pytestmark = pytest.mark.full
JOB = f"one-predictors-{MODEL}-precompile"
CLAIM = f"one-predictors-{MODEL}-cache"
FOLDER = "/var/cache/predictors/compiled"
CACHE = {"enabled": True, "precompile": True, "keep": False, "size": "1Gi"}


@pytest.fixture
def room_for_a_claim(kube: Kube) -> Iterator[None]:
    """A volume for the claim that the chart makes; another cluster has a default StorageClass."""
    if "E2E_CHECKPOINTS" in os.environ:
        yield
        return
    folder = places.cache() / f"compiled-{kube.namespace}"
    folder.mkdir(parents=True)
    folder.chmod(0o777)  # as a fresh volume of most provisioners
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{kube.namespace}-compiled"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(folder)},
            "claimRef": {"namespace": kube.namespace, "name": CLAIM},
        },
    }
    kube.apply(volume)
    yield
    kube("delete", "pv", f"{kube.namespace}-compiled", "--wait=false")
    shutil.rmtree(folder)


def completions(kube: Kube) -> list[str]:
    """When the Job has completed, each time, as the API server writes it."""
    seen = [each for each in events_of(kube, "Job", JOB) if each["reason"] == "Completed"]
    return sorted(str(each["firstTimestamp"]) for each in seen)


def rollouts(kube: Kube) -> list[str]:
    """When each version of the pods came, oldest first."""
    sets: list[Object] = kube.list("rs", f"serving.kserve.io/inferenceservice={MODEL}")
    return sorted(str(each["metadata"]["creationTimestamp"]) for each in sets)


def test_an_upgrade_fills_the_cache_before_it_rolls_out_and_servers_only_read_it(
    kube: Kube, room_for_a_claim: None
) -> None:
    with installed(kube, values(cache=CACHE)) as release:
        kube.wait_served(MODEL)
        until("the Job's end is told", lambda: len(completions(kube)) == 1, 30)
        assert not kube.list("jobs"), "a Job that succeeded should be gone"
        (pod,) = kube.ready_pods(MODEL, 1)
        assert kube.exec(name_of(pod), "ls", FOLDER).startswith("cpu-")
        with pytest.raises(CommandFailed, match="Read-only file system"):
            kube.exec(name_of(pod), "touch", f"{FOLDER}/mine")

        slots = {"compute": {"device": "cpu"}, "flux": {"slots": 2}}
        release.upgrade([], values(cache=CACHE, settings=slots))
        until("the new version rolls out", lambda: len(rollouts(kube)) == 2, 60)
        until("the Job's end is told", lambda: len(completions(kube)) == 2, 30)
        (_, filled), (_, rolled) = completions(kube), rollouts(kube)
        assert filled <= rolled
        kube("rollout", "status", f"deployment/{MODEL}-predictor", "--timeout=120s")
    gone = {"checkpoints"}
    until("its claim goes, too", lambda: {name_of(p) for p in kube.list("pvc")} == gone, 60)
