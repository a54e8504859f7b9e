"""An adapter in a folder of the checkpoint's own claim: the pod has one volume of it, KServe
mounts nothing beside it, and the pictures that ask for the adapter have its colour, others not.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.e2e import asks
from tests.e2e.kube import Kube, Object
from tests.e2e.one_model import MODEL, installed, values

ADAPTER = "all-cyan"
COLOURED = 90  # of 255: how far a colour's channels are above the others


@pytest.fixture(scope="module")
def pod(kube: Kube) -> Iterator[Object]:
    """The drawing model's pod, with an adapter on the claim `checkpoints`."""
    adapter = {"name": ADAPTER, "uri": f"pvc://checkpoints/shapes-loras/{ADAPTER}"}
    with installed(kube, values(model={"loras": [adapter]}), "own-claim"):
        kube.wait_served(MODEL)
        (found,) = kube.ready_pods(MODEL, 1)
        yield found


def share(file: bytes, *, red: bool) -> float:
    """The part of a picture's pixels that are red, or cyan."""
    with Image.open(io.BytesIO(file)) as picture:
        r, g, b = np.moveaxis(np.asarray(picture.convert("RGB"), dtype=np.int16), 2, 0)
    above = r - np.maximum(g, b) if red else np.minimum(g, b) - r
    return float((above > COLOURED).mean())


def draw(kube: Kube, *loras: str) -> bytes:
    """A large red circle with these adapters."""
    body = asks.picture_body(128, 128, 28)
    if loras:
        body["parameters"]["loras"] = json.dumps([{"name": name} for name in loras])
    url = f"{kube.url(MODEL)}/v2/models/{MODEL}/infer"
    reply = httpx.post(url, json=body, timeout=asks.PATIENCE_S, trust_env=False)
    return asks.png_of(asks.checked(reply))


def test_the_pod_has_the_claim_as_one_volume_mounted_by_folders(pod: Object) -> None:
    claims = [each for each in pod["spec"]["volumes"] if "persistentVolumeClaim" in each]
    assert [each["persistentVolumeClaim"]["claimName"] for each in claims] == ["checkpoints"]
    (server,) = pod["spec"]["containers"]
    (name,) = {each["name"] for each in claims}
    mounted = {
        each["mountPath"]: each["subPath"] for each in server["volumeMounts"]
        if each["name"] == name
    }  # fmt: skip
    assert mounted == {"/mnt/models": "shapes-flux", "/loras/0": f"shapes-loras/{ADAPTER}"}


def test_the_adapter_changes_the_pictures_that_ask_for_it(kube: Kube, pod: Object) -> None:
    plain, changed = draw(kube), draw(kube, ADAPTER)
    seen = [(share(file, red=True), share(file, red=False)) for file in (plain, changed)]
    print(seen)
    (red, no_cyan), (no_red, cyan) = seen
    assert min(red, cyan) > 0.1, seen
    assert max(no_cyan, no_red) < 0.01, seen
