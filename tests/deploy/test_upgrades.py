"""Upgrades from earlier charts: their values still render or are refused by name, no object is lost
or changed where Kubernetes refuses a change, and docs/upgrading.md says what a user sees.

`earlier/` has those charts as `git archive` wrote them, named by their commit. tests/e2e upgrades a
running release.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.blocks import FENCE
from tests.deploy.chart import CHART, KUBERNETES, Object, binary
from tests.deploy.dockerfile import ROOT

ARCHIVE = Path(__file__).parent / "earlier/predictors-3f9a55c.tgz"
PAGE = (ROOT / "docs/upgrading.md").read_text()
with tarfile.open(ARCHIVE) as listing:
    FILES = sorted(
        name.removeprefix("predictors/") for name in listing.getnames()
        if name.endswith("-values.yaml") or name.startswith("predictors/values-")
    )  # fmt: skip
CARD = 'models.flux.gpu={"count":1,"spare":1}'
SAID = [  # what the earlier chart took, and today's refuses: values, key and remedy
    ((CARD, 'models.flux.gpu.resource="amd.com/gpu"'), "gpu.resource", "nvidia"),
    ((CARD, 'models.flux.resources.limits={"nvidia.com/gpu":1}'), "resources.limits", "gpu.count"),
    (("models.flux.settings.flux.png_level=12",), "flux.png_level", "at most 9"),
    (('models.flux.settings.qwen_vl.precision="int8"',), "qwen_vl.precision", "fp8"),
]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart of 3f9a55c."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "predictors"


def template(chart: Path, *values: Path, sets: tuple[str, ...] = ()) -> list[Object] | str:
    """The objects that a chart renders, or Helm's message."""
    files = [word for path in values for word in ("-f", str(path))]
    flags = [word for each in sets for word in ("--set-json", each)]
    done = subprocess.run(
        [binary("helm"), "template", "predictors", str(chart), "-n", "demo",
         "--kube-version", KUBERNETES, *files, *flags],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode:
        return done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def fixed(found: Object) -> Any:
    """The fields that Kubernetes lets no one change, or only by replacing the object."""
    spec = found.get("spec", {})
    match found["kind"]:
        case "DaemonSet":
            return spec["selector"]
        case "PersistentVolumeClaim":
            kept = ("accessModes", "storageClassName", "resources")
            return {key: spec.get(key) for key in kept}
        case "RoleBinding":
            return found["roleRef"]
    return None


@pytest.mark.parametrize("name", FILES)
def test_the_values_of_the_earlier_chart_render_and_no_object_is_lost(
    earlier: Path, name: str
) -> None:
    """Its defaults and a profile or case, all said, as by `helm get values --all`."""
    sets = ("prepull.enabled=true",)
    before = template(earlier, earlier / name, sets=sets)
    after = template(CHART, earlier / "values.yaml", earlier / name, sets=sets)
    assert isinstance(before, list), before
    assert isinstance(after, list), after
    old, new = (
        {(each["kind"], each["metadata"]["name"]): fixed(each) for each in objects}
        for objects in (before, after)
    )
    assert set(old) <= set(new)
    assert old == {key: new[key] for key in old}


def test_no_setting_of_the_earlier_chart_is_gone(earlier: Path) -> None:
    def settings(chart: Path) -> set[str]:
        schema = json.loads((chart / "values.schema.json").read_text())
        sections = schema["definitions"]["settings"]["properties"]
        return {f"{name}.{key}" for name in sections for key in sections[name]["properties"]}

    assert settings(earlier) <= settings(CHART)
    assert len(settings(earlier)) > 50


@pytest.mark.parametrize(("said", "key", "remedy"), SAID, ids=[key for _, key, _ in SAID])
def test_what_is_refused_now_is_refused_by_name_and_the_page_has_it(
    earlier: Path, said: tuple[str, ...], key: str, remedy: str
) -> None:
    laptop = earlier / "values-laptop.yaml"
    assert isinstance(template(earlier, laptop, sets=said), list)
    message = template(CHART, laptop, sets=said)
    assert isinstance(message, str)
    (line,) = [line for line in message.splitlines() if key in line]
    assert remedy in line
    assert key in PAGE


def test_reusing_the_values_of_the_earlier_chart_is_refused_with_the_flag_that_works(
    earlier: Path, tmp_path: Path
) -> None:
    """`--reuse-values` takes the defaults of the chart before for those of today's."""
    mixed = tmp_path / "predictors"
    shutil.copytree(CHART, mixed)
    shutil.copyfile(earlier / "values.yaml", mixed / "values.yaml")
    message = template(mixed, earlier / "values-laptop.yaml")
    assert isinstance(message, str)
    assert "say --reset-then-reuse-values" in message
    assert "--reset-then-reuse-values" in PAGE


def test_the_values_of_the_page_are_taken(tmp_path: Path) -> None:
    blocks = [text for _, language, text in FENCE.findall(PAGE) if language == "yaml"]
    assert blocks
    for text in blocks:
        values = tmp_path / "values.yaml"
        values.write_text(text)
        found = template(CHART, CHART / "values-laptop.yaml", values)
        assert isinstance(found, list), found


def test_the_ports_of_the_earlier_chart_can_be_kept(earlier: Path, tmp_path: Path) -> None:
    """The page's values for who can't change scrapers at once give the ports of before."""
    (text,) = [text for _, kind, text in FENCE.findall(PAGE) if kind == "yaml" and "-1" in text]
    values = tmp_path / "values.yaml"
    values.write_text(text)
    laptop = earlier / "values-laptop.yaml"

    def ports(found: list[Object] | str) -> list[Any]:
        assert isinstance(found, list), found
        runtimes = [each["spec"] for each in found if each["kind"] == "ServingRuntime"]
        return [
            (spec["annotations"]["prometheus.kserve.io/port"], one["ports"], one["readinessProbe"])
            for spec in runtimes for one in spec["containers"]
        ]  # fmt: skip

    assert ports(template(CHART, laptop, values)) == ports(template(earlier, laptop))
    assert ports(template(CHART, laptop)) != ports(template(earlier, laptop))


def test_the_page_names_every_commit_whose_chart_is_kept() -> None:
    for path in ARCHIVE.parent.glob("*.tgz"):
        assert path.stem.removeprefix("predictors-") in PAGE
