"""manifests/ is current, and kustomize makes of it what Helm would install, in any namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart import CHART, PROFILES, Object, binary, render

ROOT = CHART.parents[1]
FOLDERS = sorted(path.parent for path in (ROOT / "manifests").glob("*/kustomization.yaml"))
HELMS = ("helm.sh/", "managed-by: Helm", "Release")


def built(folder: Path) -> list[Object]:
    """The objects that `kubectl apply -k` would apply."""
    done = subprocess.run(
        [binary("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def overlaid(folder: Path, base: Path, **more: object) -> list[Object]:
    """The objects of a user's kustomization on top of ours."""
    (folder / "kustomization.yaml").write_text(
        json.dumps({"resources": [os.path.relpath(base, folder.resolve())], **more})
    )
    return built(folder)


def test_manifests_are_what_make_manifests_writes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.manifests", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"run `make manifests`\n{done.stdout}{done.stderr}"


def test_there_is_a_folder_for_every_profile() -> None:
    assert {folder.name for folder in FOLDERS} == {
        profile.stem.removeprefix("values-") for profile in PROFILES
    }


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.name)
def test_a_folder_has_what_helm_installs_but_for_the_tests(profile: Path) -> None:
    def names(objects: list[Object]) -> set[tuple[str, str]]:
        return {(each["kind"], each["metadata"]["name"]) for each in objects}

    installed = [
        each
        for each in render(profile)
        if each["metadata"].get("annotations", {}).get("helm.sh/hook") != "test"
    ]
    folder = ROOT / "manifests" / profile.stem.removeprefix("values-")
    assert names(built(folder)) == names(installed)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_nothing_in_a_folder_is_only_for_helm(folder: Path) -> None:
    for path in folder.iterdir():
        assert not [word for word in HELMS if word in path.read_text()], path


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_users_namespace_and_image_reach_every_place(folder: Path, tmp_path: Path) -> None:
    own = yaml.safe_load((folder / "kustomization.yaml").read_text())
    image = {"name": "vision-predictors", "newName": "mirror.local/vp", "newTag": "9"}
    repeated = {key: own[key] for key in ("replacements",) if key in own}
    objects = overlaid(tmp_path, folder, namespace="elsewhere", images=[image], **repeated)
    assert {each["metadata"]["namespace"] for each in objects} == {"elsewhere"}
    text = yaml.safe_dump_all(objects)
    assert "mirror.local/vp:9" in text
    assert "vision-predictors:" not in text
    assert "namespace: default" not in text  # the subjects of RoleBindings
    assert '"default"' not in text  # the queries


def test_the_production_queries_name_the_namespace() -> None:
    queries = [
        metric["external"]["metric"]["query"]
        for each in built(ROOT / "manifests/production")
        if each["kind"] == "InferenceService"
        for metric in each["spec"]["predictor"]["autoScaling"]["metrics"]
    ]
    assert len(queries) == 2
    for query in queries:
        assert query.count('namespace="default"') == 2
