"""An upgrade from the first chart that people may have installed to today's, under load: no request
fails, and nothing of the former one is left. The image stays today's, as an operator changes one
thing at a time.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import asks
from tests.e2e.helm import LAPTOP, Release, small
from tests.e2e.kube import Kube, until
from tests.e2e.rollout import change

ROOT = Path(__file__).resolve().parents[2]
FORMER = "3f9a55c2ea229bd263cca67c06076deaaa98a982"
"""The commit of the former chart: probes and metrics on the data port, no keys, fixed ids."""


@pytest.fixture
def former(kube: Kube, tmp_path: Path) -> Iterator[Release]:
    """The laptop profile of the former chart, installed and served."""
    archive = ["git", "-C", str(ROOT), "archive", FORMER, "charts/predictors"]
    packed = subprocess.run(archive, capture_output=True)
    if packed.returncode:
        pytest.fail(
            f"the chart of {FORMER[:8]} is read from this repository's history:"
            f" `git fetch --unshallow` brings it. git said: {packed.stderr.decode()}"
        )
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=packed.stdout, check=True)
    release = Release("laptop", kube.namespace, tmp_path / "charts" / "predictors")
    release.install([LAPTOP], small())
    kube.wait_served(*asks.MODELS)
    for model in asks.MODELS:
        kube.ready_pods(model, 1)
    yield release
    release.uninstall()
    until("no pod is left", lambda: not kube.list("pods"), 90)


def ports(kube: Kube, model: str) -> set[str]:
    """The names of the ports of a model's only pod."""
    (pod,) = kube.ready_pods(model, 1)
    return {port["name"] for port in pod["spec"]["containers"][0]["ports"]}


@pytest.mark.full
def test_an_upgrade_from_the_former_chart_fails_no_request(
    kube: Kube, former: Release, kept: Path
) -> None:
    assert not any("metrics" in ports(kube, model) for model in asks.MODELS)
    today = Release(former.name, kube.namespace)
    windows = change(kube, "upgrade of the chart", kept, lambda: today.upgrade([LAPTOP], small()))
    for model in asks.MODELS:
        assert {"metrics", "health"} <= ports(kube, model)
    for window in windows:
        window.assert_none_failed(at_least=3)
    assert "Succeeded" in today.test()
