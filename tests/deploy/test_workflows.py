"""GitHub's workflows: linted, pinned by commit, and the release's steps that need no registry run.

No test publishes anything: image, signatures and provenance of release.yaml are unproved.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.dockerfile import ROOT
from tools.release import CHECKSUMS

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
        "contents", "packages", "id-token", "attestations",
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
        assert said == (
            f"VERSION={version[1]}\nIMAGE_NAME=ghcr.io/someone/vision-predictors\n"
            "CHART_REPOSITORY=ghcr.io/someone/charts\n"
        )


def test_variables_of_the_repository_name_image_and_chart_and_their_registries(
    tmp_path: Path,
) -> None:
    for name in ("charts", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    names = {"IMAGE_NAME": "one.example.com/a/image", "CHART_REPOSITORY": "two.example.com/charts"}
    done = run(
        named("The tag is"), tmp_path, GITHUB_REF_NAME=f"v{version[1]}",
        GITHUB_REPOSITORY_OWNER="SomeOne", **names,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, value in names.items():
        assert RELEASE["env"][name] == f"${{{{ vars.{name} }}}}"
        assert f"{name}={value}\n" in (tmp_path / "github_env").read_text()
    path = writes_down(tmp_path, "docker", "helm")
    done = run(named("Log in"), tmp_path, LOGIN="me", TOKEN="secret", PATH=path, **names)
    assert done.returncode == 0, done.stderr
    assert words(tmp_path) == [
        "docker login one.example.com --username me --password-stdin",
        "helm registry login two.example.com --username me --password-stdin",
    ]


def writes_down(folder: Path, *names: str) -> str:
    """A PATH with programs of these names that only write down what they were asked."""
    (folder / "bin").mkdir(exist_ok=True)
    for name in names:
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{folder}/words\n')
        path.chmod(0o755)
    return f"{folder / 'bin'}:{os.environ['PATH']}"


def words(folder: Path) -> list[str]:
    return (folder / "words").read_text().splitlines()


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
        "BASE": RELEASE["env"]["BASE"], "VERSION": "1.2.3",
        "IMAGE_NAME": "ghcr.io/someone/vision-predictors",
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
    """The step's words for `make release`; what that makes of them is shown by test_release.py."""
    image = "ghcr.io/someone/vision-predictors"
    done = run(
        named("Pack the release"), tmp_path, NAME=image, DIGEST=DIGEST,
        GITHUB_SERVER_URL="https://github.example.com", GITHUB_REPOSITORY="someone/something",
        GITHUB_WORKFLOW_REF="someone/something/.github/workflows/release.yaml@refs/tags/v1",
        PATH=writes_down(tmp_path, "make"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = words(tmp_path)
    flags = line.partition("RELEASE=")[2].split()
    said = dict(itertools.pairwise(flags))
    assert "--no-image" in flags
    assert (said["--image"], said["--digest"]) == (image, DIGEST)
    assert said["--url"] == "https://github.example.com/someone/something"
    assert said["--builder"].endswith("release.yaml@refs/tags/v1")


def test_the_packed_chart_is_pushed_and_signed_by_digest(tmp_path: Path) -> None:
    """`helm push` and `cosign` write down their words: no registry is within reach."""
    path = writes_down(tmp_path, "cosign", "helm")
    helm = tmp_path / "bin/helm"
    helm.write_text(f'{helm.read_text()}echo "Digest: {DIGEST}" >&2\n')
    (tmp_path / "out/release").mkdir(parents=True)
    (tmp_path / "out/release/predictors-1.2.3.tgz").touch()
    done = run(
        named("Push and sign"), tmp_path, CHART_REPOSITORY="ghcr.io/someone/charts", PATH=path
    )
    assert done.returncode == 0, done.stderr
    assert words(tmp_path) == [
        "helm push out/release/predictors-1.2.3.tgz oci://ghcr.io/someone/charts",
        f"cosign sign --yes ghcr.io/someone/charts/predictors@{DIGEST}",
    ]


def test_all_files_of_the_release_are_attested_and_attached() -> None:
    (step,) = [each for each in steps(RELEASE) if each.get("with", {}).get("subject-checksums")]
    assert step["with"]["subject-checksums"] == f"out/release/{CHECKSUMS}"
    assert " out/release/*" in named("Attach the files")
