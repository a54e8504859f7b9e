"""GitHub's workflows: linted, pinned by commit, and the release's steps that need no registry run.

No test publishes anything: image, signatures and provenance of release.yaml are unproved.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import binary
from tests.deploy.dockerfile import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))
RELEASE = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())
DIGEST = "sha256:" + "5" * 64


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def named(start: str) -> str:
    """The script of the release's step whose name begins so."""
    (found,) = [step for step in steps(RELEASE) if step.get("name", "").startswith(start)]
    script: str = found["run"]
    return script


def run(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a step's script as GitHub does, in `folder`."""
    outputs = {name: str(folder / name.lower()) for name in ("GITHUB_ENV", "GITHUB_OUTPUT")}
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **outputs, **variables}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def lint(*words: str) -> subprocess.CompletedProcess[str]:
    zizmor = Path(sys.executable).with_name("zizmor")
    assert zizmor.exists(), "zizmor comes with the extra `deploy`: make setup"
    command = [str(zizmor), "--offline", "--no-progress", *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_linter_has_nothing_to_say() -> None:
    done = lint("--persona", "pedantic", *map(str, WORKFLOWS))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_sees_what_is_wrong(tmp_path: Path) -> None:
    """It is not blind: an action named by its tag and a caller's text in a script are found."""
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "name: bad\non: pull_request_target\njobs:\n  all:\n    runs-on: ubuntu-24.04\n    steps:\n"
        "      - uses: actions/checkout@v4\n"
        "      - run: echo ${{ github.event.pull_request.title }}\n"
    )
    done = lint(str(bad))
    assert done.returncode != 0
    for finding in ("unpinned-uses", "template-injection", "dangerous-triggers"):
        assert finding in done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_scripts_parse(path: Path) -> None:
    text = path.read_text()
    uses = re.findall(r"uses: (\S+)(.*)", text)
    for action, comment in uses:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action
    workflow = yaml.safe_load(text)
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
    for step in steps(workflow):
        if "run" in step:
            done = subprocess.run(["bash", "-n"], input=step["run"], text=True, capture_output=True)
            assert done.returncode == 0, done.stderr


def test_the_release_says_that_it_has_never_run() -> None:
    assert "it has never run" in (ROOT / ".github/workflows/release.yaml").read_text()
    assert "has never run" in (ROOT / "docs/deploy.md").read_text()


def test_only_the_job_that_publishes_may_write() -> None:
    assert RELEASE["permissions"] == {}
    (job,) = RELEASE["jobs"].values()
    assert {name for name, right in job["permissions"].items() if right == "write"} == {
        "packages", "id-token", "attestations",
    }  # fmt: skip
    assert RELEASE[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as true


@pytest.mark.parametrize(("tag", "goes"), [("v{}", True), ("v9.9.9", False), ("{}", False)])
def test_a_tag_that_is_not_the_version_stops_the_release(
    tmp_path: Path, tag: str, goes: bool
) -> None:
    (tmp_path / "charts").symlink_to(ROOT / "charts")
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    name = tag.format(version[1])
    owner = {"GITHUB_REPOSITORY_OWNER": "SomeOne"}
    done = run(named("The tag is"), tmp_path, GITHUB_REF_NAME=name, **owner)
    assert (done.returncode == 0) == goes, done.stderr
    if goes:
        said = (tmp_path / "github_env").read_text()
        assert said == f"VERSION={version[1]}\nREGISTRY=ghcr.io/someone\n"


def test_the_image_is_built_on_a_base_that_is_named_by_digest(tmp_path: Path) -> None:
    """With a `docker` that writes down its words: what the real one does is not shown here."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$*" >>words\n'
        f'case "$*" in *imagetools*) echo {DIGEST};; '
        f"""*build\\ *) echo '{{"containerimage.digest": "{DIGEST}"}}' >image.json;; esac\n"""
    )
    docker.chmod(0o755)
    jq = tmp_path / "bin" / "jq"
    jq.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        "print(json.load(open(sys.argv[3]))[sys.argv[2][2:-1]])\n"
    )
    jq.chmod(0o755)
    said = {
        "BASE": RELEASE["env"]["BASE"], "VERSION": "1.2.3", "REGISTRY": "ghcr.io/someone",
        "GITHUB_SHA": "abc", "GITHUB_SERVER_URL": "https://example.com",
        "GITHUB_REPOSITORY": "someone/something",
        "PATH": f"{docker.parent}:{os.environ['PATH']}",
    }  # fmt: skip
    done = run(named("Build and push"), tmp_path, **said)
    assert done.returncode == 0, done.stderr
    build = (tmp_path / "words").read_text().splitlines()[-1]
    assert f"--build-arg BASE_IMAGE=python:3.12-slim@{DIGEST} " in build
    assert "--push" in build
    assert (tmp_path / "github_output").read_text() == (
        f"digest={DIGEST}\nname=ghcr.io/someone/vision-predictors\n"
    )


def test_the_chart_that_is_published_names_the_image_by_digest(tmp_path: Path) -> None:
    """With the real `helm package`; `helm push` and `cosign` write down their words."""
    (tmp_path / "charts").symlink_to(ROOT / "charts")
    real, folder = binary("helm"), tmp_path / "bin"
    folder.mkdir()
    for name, script in {
        "helm": f'case "$1" in push) echo "Digest: {DIGEST}" >&2;; *) exec {real} "$@";; esac',
        "cosign": 'echo "$@" >>signed',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    image = "ghcr.io/someone/vision-predictors"
    done = run(
        named("Package, push and sign"), tmp_path, NAME=image, DIGEST=DIGEST,
        REGISTRY="ghcr.io/someone", PATH=f"{folder}:{os.environ['PATH']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "signed").read_text() == (
        f"sign --yes ghcr.io/someone/charts/predictors@{DIGEST}\n"
    )
    (package,) = (tmp_path / "out").glob("*.tgz")
    shown = subprocess.run(
        [real, "template", "x", str(package), "--kube-version", "1.34.0",
         "-f", str(ROOT / "charts/predictors/values-laptop.yaml")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    images = set(re.findall(r"image: (\S*vision-predictors\S*)", shown.stdout))
    assert images == {f"{image}@{DIGEST}"}
