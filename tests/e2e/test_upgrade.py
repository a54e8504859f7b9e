"""An upgrade from the first chart that people may have installed to today's, and a rollback to it,
under load: no request fails, and settings and ports are those of the chart that was asked for. The
image stays today's, as an operator changes one thing at a time.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e import asks
from tests.e2e.conftest import ROOT
from tests.e2e.helm import LAPTOP, Release, small
from tests.e2e.kube import Kube
from tests.e2e.rollout import change

FORMER = ROOT / "tests/deploy/earlier/predictors-3f9a55c.tgz"
"""The former chart: probes and metrics on the data port, no keys, fixed ids."""
CHANGED = {"queue": {"capacity": 32}, "flux": {"slots": 2}}


@pytest.fixture
def former(kube: Kube, tmp_path: Path) -> Iterator[Release]:
    """The laptop profile of the former chart, installed and served."""
    with tarfile.open(FORMER) as archive:
        archive.extractall(tmp_path, filter="data")
    release = Release("laptop", kube.namespace, tmp_path / "predictors")
    release.install([LAPTOP], small())
    kube.wait_served(*asks.MODELS)
    for model in asks.MODELS:
        kube.ready_pods(model, 1)
    yield release
    release.uninstall(wait=False)


def ports(kube: Kube, model: str) -> set[str]:
    """The names of the ports of a model's only pod."""
    (pod,) = kube.ready_pods(model, 1)
    return {port["name"] for port in pod["spec"]["containers"][0]["ports"]}


def capacity(kube: Kube, model: str) -> float:
    """`queue.capacity` as the model's pod itself reports it."""
    address, ports = kube.service(model)
    port = ports.get("metrics", ports["http1"])
    text = httpx.get(f"http://{address}:{port}/metrics", trust_env=False).text
    (line,) = [x for x in text.splitlines() if x.startswith("predictors_queue_capacity{")]
    return float(line.split()[-1])


def test_an_upgrade_from_the_former_chart_and_a_rollback_to_it_fail_no_request(
    kube: Kube, former: Release, kept: Path
) -> None:
    was = {model: (capacity(kube, model), ports(kube, model)) for model in asks.MODELS}
    assert not any("metrics" in names for _, names in was.values())
    today = Release(former.name, kube.namespace)

    def upgrade() -> None:
        today.upgrade([LAPTOP], small(settings=CHANGED))

    up = change(kube, "upgrade of the chart", kept, upgrade)
    for model in asks.MODELS:
        assert {"metrics", "health"} <= ports(kube, model)
        assert capacity(kube, model) == CHANGED["queue"]["capacity"]
    assert "Succeeded" in today.test()
    back = change(kube, "rollback to the former chart", kept, lambda: today.rollback(1))
    now = {model: (capacity(kube, model), ports(kube, model)) for model in asks.MODELS}
    assert now == was
    for window in [*up, *back]:
        window.assert_none_failed(at_least=3)  # how many there were is the machine's affair
