"""The chart where admission gives pods their ids as OpenShift does, in a namespace of restricted
Pod Security: `values-openshift.yaml`, an init container, a sidecar, a read-only root, and weights
that KServe fetches from S3 with a Secret.

Not OpenShift itself: tests/e2e/openshift.py has the two rules of its admission that matter here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e import asks, object_store, openshift
from tests.e2e.helm import Release, server_image
from tests.e2e.kube import CommandFailed, Kube, Object, until
from tests.e2e.one_model import MODEL, events_of, values

OPENSHIFT = Path("values-openshift.yaml")
LEFT_BY_INIT = "written by the init container"
FILES_PORT = 8090
# the first process of a container ends at SIGTERM only if it handles it
FILES = """
import runpy, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
del sys.argv[0]
runpy.run_module("http.server", run_name="__main__")
"""
SHARED = {"name": "shared", "mountPath": "/shared"}


def beside(name: str, *argv: str) -> Object:
    """A container that runs a program of the product's image."""
    return {
        "name": name,
        "image": server_image(),
        "imagePullPolicy": "Never",
        "command": ["python", *argv],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": {**object_store.BARE, "readOnlyRootFilesystem": True},
        "volumeMounts": [SHARED],
    }


def downloaded(kube: Kube) -> Object:
    """One model from the bucket, with an init container that writes a file and a sidecar that
    serves it."""
    write = f"open('/shared/note', 'w').write({LEFT_BY_INIT!r})"
    serve = ("-c", FILES, "http.server", str(FILES_PORT), "--directory", "/shared")
    model = {
        "storage": {
            "uri": f"s3://{object_store.BUCKET}/shapes-flux",
            "secretName": object_store.SECRET,
            "containerName": kube.namespace,
        },
        "extraVolumes": [{"name": "shared", "emptyDir": {}}],
        "initContainers": [beside("writes", "-c", write)],
        "extraContainers": [beside("serves", *serve)],
    }
    found: Object = values(model=model)
    return found


@pytest.fixture(scope="module")
def uid(kube: Kube) -> Iterator[int]:
    """The only uid that the namespace admits."""
    with openshift.admission(kube) as uid:
        yield uid


@pytest.fixture(scope="module")
def pod(kube: Kube, uid: int) -> Iterator[str]:
    """The name of the model's pod, ready."""
    release = Release("own", kube.namespace)
    with object_store.serving(kube):
        release.install([OPENSHIFT], downloaded(kube))
        kube.wait_served(MODEL)
        (ready,) = kube.ready_pods(MODEL, 1)
        yield str(ready["metadata"]["name"])
        release.uninstall(wait=False)


def shell(kube: Kube, pod: str, container: str, command: str) -> str:
    return kube("exec", pod, "-c", container, "--", "sh", "-c", command).strip()


def test_every_container_runs_as_the_given_uid_with_group_0(kube: Kube, pod: str, uid: int) -> None:
    spec = kube.get("pod", pod)["spec"]
    assert spec["securityContext"]["runAsUser"] == uid
    assert "runAsGroup" not in spec["securityContext"]
    everyone = [*spec["containers"], *spec["initContainers"]]
    assert {each["name"] for each in everyone} >= {
        "kserve-container", "serves", "writes", "storage-initializer",
    }  # fmt: skip
    for each in everyone:
        assert each["securityContext"]["readOnlyRootFilesystem"] is True, each["name"]
        assert not {"runAsUser", "runAsGroup"} & set(each["securityContext"]), each["name"]
    for container in ("kserve-container", "serves"):
        assert shell(kube, pod, container, "id -u; id -g").split() == [str(uid), "0"]


def test_the_root_cannot_be_written_and_tmp_can(kube: Kube, pod: str) -> None:
    with pytest.raises(CommandFailed, match="Read-only file system"):
        shell(kube, pod, "kserve-container", "touch /opt/predictors/x")
    shell(kube, pod, "kserve-container", "touch /tmp/x && rm /tmp/x")


def test_it_draws_with_the_weights_that_were_fetched(kube: Kube, pod: str) -> None:
    fetched = shell(kube, pod, "kserve-container", "find /mnt/models -type f | wc -l")
    assert int(fetched) > 3
    log = kube("logs", pod, "-c", "storage-initializer")
    assert f"s3://{object_store.BUCKET}/shapes-flux" in log
    body = asks.picture_body()
    answers = httpx.post(f"{kube.url(MODEL)}/v2/models/{MODEL}/infer", json=body, timeout=60)
    asks.check_png(asks.png_of(asks.checked(answers)), 64, 64)


def test_the_sidecar_serves_what_the_init_container_left(kube: Kube, pod: str) -> None:
    address = kube.get("pod", pod)["status"]["podIP"]
    said = httpx.get(f"http://{address}:{FILES_PORT}/note", timeout=20, trust_env=False)
    assert said.text == LEFT_BY_INIT


def test_without_the_overlay_no_pod_is_admitted(kube: Kube, uid: int) -> None:
    """The admission bites: the chart's own ids are refused, and the ReplicaSet says so."""
    release = Release("fixed", kube.namespace)
    given = values()
    given["models"] = {"fixed": given["models"][MODEL]}
    given["runtimes"] = {"priority": 2}
    release.install([], given)
    try:
        refused = until("the pod is refused", lambda: refusals(kube), 60)
        assert f"ids must be {uid}" in refused
        assert kube.pods("fixed") == []
    finally:
        release.uninstall(wait=False)


def refusals(kube: Kube) -> str:
    """The refusals that the ReplicaSets of the second release got."""
    sets = kube.list("replicasets", "serving.kserve.io/inferenceservice=fixed")
    names = [each["metadata"]["name"] for each in sets]
    said = [event["message"] for name in names for event in events_of(kube, "ReplicaSet", name)]
    return "\n".join(message for message in said if "ids must be" in message)
