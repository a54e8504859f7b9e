"""An InferenceService of few lines, as docs/deploy.md shows it, applied by hand: it finds the
release's runtime by its format alone, and ends within the 30 s that Kubernetes gives it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import httpx
import pytest
import yaml

from tests.e2e import asks
from tests.e2e.conftest import ROOT
from tests.e2e.helm import Release, small
from tests.e2e.kube import Kube, Object, name_of, until

NAME = "mine"
GRACE_S = 30


def shown() -> Object:
    """The InferenceService that the page tells people to apply."""
    page = (ROOT / "docs/deploy.md").read_text()
    found = [yaml.safe_load(text) for text in re.findall(r"<<END\n(.*?)^END$", page, re.M | re.S)
             if f"name: {NAME}\n" in text]  # fmt: skip
    (given,) = found
    assert "runtime" not in given["spec"]["predictor"]["model"]
    return dict(given)


@pytest.fixture(scope="module")
def pod(kube: Kube) -> Iterator[Object]:
    """The service's pod, ready; the release holds runtimes and no model of its own."""
    release = Release("runtimes", kube.namespace)
    release.install([], {**small(), "models": {}, "tests": {"enabled": False}})
    kube.apply(shown())
    kube.wait_served(NAME)
    (found,) = kube.ready_pods(NAME, 1)
    yield found
    release.uninstall(wait=False)


def test_it_is_served_by_the_runtime_of_its_format(kube: Kube, pod: Object) -> None:
    body = asks.picture_body()
    url = f"{kube.url(NAME)}/v2/models/{NAME}/infer"
    reply = httpx.post(url, json=body, timeout=asks.PATIENCE_S, trust_env=False)
    asks.check_png(asks.png_of(asks.checked(reply)), 64, 64)


def test_it_ends_by_itself_within_the_grace_that_kubernetes_gives(kube: Kube, pod: Object) -> None:
    (server,) = pod["spec"]["containers"]
    env = {each["name"]: each.get("value") for each in server["env"]}
    assert pod["spec"]["terminationGracePeriodSeconds"] == GRACE_S
    spent = [float(env[f"PREDICTORS_SERVER_{name}_S"] or 0) for name in ("LINGER", "DRAIN_TIMEOUT")]
    assert sum(spent) + server["lifecycle"]["preStop"]["sleep"]["seconds"] < GRACE_S
    began_s = time.monotonic()
    kube("delete", "isvc", NAME, "--wait")
    until("its pod is gone", lambda: name_of(pod) not in map(name_of, kube.list("pods")), GRACE_S)
    print(f"gone after {time.monotonic() - began_s:.1f} s")
