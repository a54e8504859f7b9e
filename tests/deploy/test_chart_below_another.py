"""The chart as a dependency of another one: under an alias, switched by a condition, with a
`global` that is everybody's. Said to the chart alone, what means nothing to it is refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart import CHART, KUBERNETES, Object, helm, of_kind, refusal, template

VALUES = {
    "global": {
        "imageRegistry": "harbor.corp", "imagePullSecrets": ["regcred"], "storageClass": "fast",
        "image": {"tag": "other"}, "nodeSelector": {"pool": "web"}, "domain": "corp.example",
    },
    "vision": {
        "enabled": True,
        "models": {"flux": {
            "format": "flux", "storage": {"uri": "pvc://ckpt/dev"}, "cache": {"enabled": True},
            "podAnnotations": {
                "release": "{{ .Release.Name }}", "at": "{{ .Values.global.domain }}",
            },
        }},
    },
    "second": {"enabled": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def above(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chart with this one below it twice, of which the second is off. As from an archive there
    is no values.schema.json."""
    folder = tmp_path_factory.mktemp("platform")
    shutil.copytree(
        CHART, folder / "charts/predictors", ignore=shutil.ignore_patterns("values.schema.json")
    )
    below = [
        {"name": "predictors", "version": ">=0.1.0", "repository": "", "alias": alias,
         "condition": f"{alias}.enabled"}
        for alias in ("vision", "second")
    ]  # fmt: skip
    about = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": below}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(about))
    (folder / "values.yaml").write_text(yaml.safe_dump(VALUES))
    return folder


@pytest.fixture(scope="module")
def objects(above: Path) -> list[Object]:
    done = helm("template", "plat", str(above), "-n", "demo", "--kube-version", KUBERNETES)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def test_a_condition_switches_it_and_an_alias_names_it(objects: list[Object]) -> None:
    (flux,) = of_kind(objects, "InferenceService").values()
    assert flux["spec"]["predictor"]["model"]["runtime"] == "plat-vision-flux"
    assert flux["spec"]["predictor"]["annotations"] == {"release": "plat", "at": "corp.example"}


def test_it_reads_of_global_what_it_knows_and_leaves_the_rest(objects: list[Object]) -> None:
    for runtime in of_kind(objects, "ServingRuntime").values():
        image = runtime["spec"]["containers"][0]["image"]
        assert image.startswith("harbor.corp/vision-predictors:")
        assert not image.endswith(":other")
        assert runtime["spec"]["imagePullSecrets"] == [{"name": "regcred"}]
    (claim,) = of_kind(objects, "PersistentVolumeClaim").values()
    assert claim["spec"]["storageClassName"] == "fast"
    (flux,) = of_kind(objects, "InferenceService").values()
    assert "nodeSelector" not in flux["spec"]["predictor"]


def test_what_is_refused_below_another_chart_is_named_by_the_same_sentence(above: Path) -> None:
    done = helm(
        "template", "plat", str(above), "--kube-version", KUBERNETES,
        "--set", "vision.models.flux.replicaz=1",
    )  # fmt: skip
    assert done.returncode
    assert "models.flux.replicaz: there is no such key; did you mean replicas?" in done.stderr


def test_alone_it_refuses_the_globals_of_others_and_to_be_off() -> None:
    laptop = "values-laptop.yaml"
    said = refusal(laptop, sets=('global={"image":{"tag":"2"},"nodeSelector":{"a":"b"}}',))
    assert "global.image: say image: {repository: ..., tag: ...}" in said
    assert "global.nodeSelector: say defaults.nodeSelector" in said
    assert "as the condition of a dependency" in refusal(laptop, sets=("enabled=false",))


def test_a_global_that_only_templates_read_is_taken() -> None:
    text = template(
        "values-laptop.yaml",
        sets=('global.cluster="east"', 'commonLabels={"c":"{{ .Values.global.cluster }}"}'),
    )
    assert "c: east" in text
