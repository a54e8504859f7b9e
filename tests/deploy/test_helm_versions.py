"""The oldest Helm that the chart is for renders what the tests' own Helm renders, and the pages and
the chart name that one.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart import CASES, CHART, KUBERNETES, PROFILES, arguments, template
from tests.deploy.dockerfile import ROOT
from tests.deploy.go_programs import installed

FLOOR = "v3.14.4"
READ = [  # values that are changed before they are checked, in the template that is rendered first
    Path(__file__).parent / f"values/{name}.yaml" for name in ("57d-empty-keys", "68-tpl")
]


@pytest.fixture(scope="module")
def oldest() -> str:
    return str(installed("helm.sh/helm/v3/cmd/helm", FLOOR))


def rendered(helm: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [helm, "template", "predictors", str(CHART), "-n", "demo", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("values", [*PROFILES, *CASES, *READ], ids=lambda path: path.name)
def test_the_oldest_helm_renders_the_same(oldest: str, values: Path) -> None:
    done = rendered(oldest, "--kube-version", KUBERNETES, *arguments(values))
    assert done.returncode == 0, done.stderr
    assert done.stdout == template(values)


def test_the_oldest_helm_refuses_in_the_same_sentences(oldest: str) -> None:
    done = rendered(oldest, "--kube-version", KUBERNETES, "--set", "sidecars=1")
    assert done.returncode
    assert "sidecars belongs to a model, or to defaults: say extraContainers" in done.stderr


def test_kubernetes_below_the_floor_is_refused_with_both_versions(oldest: str) -> None:
    for version, goes in (("1.30.9", False), ("1.31.0", True), ("v1.35.2-eks-1", True)):
        done = rendered(oldest, "--kube-version", version, *arguments("values-laptop.yaml"))
        assert (done.returncode == 0) == goes, done.stderr
        if not goes:
            assert "requires kubeVersion: >=1.31.0-0 which is incompatible" in done.stderr
            assert version in done.stderr


def test_chart_and_pages_name_these_versions() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    floor = ".".join(FLOOR.removeprefix("v").split(".")[:2])
    assert about["annotations"]["helm.sh/version"] == f">={floor}"
    assert about["kubeVersion"] == ">=1.31.0-0"
    page = (ROOT / "docs/deploy.md").read_text()
    assert f"`helm` {floor} or later" in page
    assert "Kubernetes 1.31 or later" in page
    assert re.search(r"`--kube-version`", (ROOT / "docs/upgrading.md").read_text())
