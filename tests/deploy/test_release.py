"""A release without its image: the same bytes each time, whole, and what its provenance says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import CHART, binary
from tools import release

IMAGE = "registry.example.com/vision-predictors"
DIGEST = "sha256:" + "5" * 64
URL = "https://git.example.com/vision-predictors"
SBOM = '{"bomFormat": "CycloneDX"}\n'


def git(folder: Path, *words: str, seconds: int = 1_700_000_000) -> None:
    dated = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), f"{seconds} +0000")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(
        ["git", *who, *words], cwd=folder, check=True, capture_output=True,
        env={**os.environ, **dated},
    )  # fmt: skip


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with what a release is made of, and an SBOM beside it."""
    folder = tmp_path / "clone"
    tracked = subprocess.run(
        ["git", "ls-files", "--", "charts", *release.PINNED],
        cwd=release.ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((release.ROOT / name).read_bytes())
    (tmp_path / "sbom.json").write_text(SBOM)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "all")
    return folder


def made(clone: Path, name: str, *words: str) -> Path:
    """The folder of a release of that clone."""
    out = clone.parent / name
    given = ["--out", str(out), "--sbom", str(clone.parent / "sbom.json"), "--no-image"]
    assert release.main([*given, *words], clone) == 0
    return out


def sums(folder: Path) -> dict[str, str]:
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()}


def provenance(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / release.PROVENANCE).read_text())
    return found


def chart_of(folder: Path) -> tarfile.TarFile:
    (path,) = folder.glob("predictors-*.tgz")
    return tarfile.open(path)


def test_two_runs_give_the_same_bytes_whatever_the_files_times_modes_and_neighbours(
    clone: Path, tmp_path: Path
) -> None:
    first = made(clone, "one")
    for path in (clone / "charts").rglob("*.yaml"):
        os.utime(path, (1, 1))
    (clone / "charts/predictors/templates/left-behind.yaml").write_text("kind: Untracked\n")
    before = os.umask(0o077)
    try:
        second = made(clone, "two")
    finally:
        os.umask(before)
    assert sums(first) == sums(second)
    assert len(sums(first)) == 4


def test_another_chart_or_another_commit_are_other_bytes(clone: Path) -> None:
    first = sums(made(clone, "one"))
    values = clone / "charts/predictors/values-laptop.yaml"
    values.write_text(values.read_text() + "# changed\n")
    git(clone, "commit", "-qam", "changed", seconds=1_700_000_000)
    second = sums(made(clone, "two"))
    assert {name for name in first if first[name] != second[name]} == {
        next(name for name in first if name.endswith(".tgz")), release.PROVENANCE,
        release.CHECKSUMS,
    }  # fmt: skip


def test_every_file_is_in_the_checksums_and_sha256sum_agrees(clone: Path) -> None:
    out = made(clone, "one")
    listed = (out / release.CHECKSUMS).read_text().splitlines()
    assert {line.split("  ")[1] for line in listed} == set(sums(out)) - {release.CHECKSUMS}
    command = ["sha256sum", "--check", "--strict", release.CHECKSUMS]
    assert subprocess.run(command, cwd=out, capture_output=True).returncode == 0
    (sbom,) = out.glob("*.cdx.json")
    sbom.write_text(SBOM + " ")
    assert subprocess.run(command, cwd=out, capture_output=True).returncode == 1


def test_the_provenance_is_of_these_files_this_commit_and_these_pins(clone: Path) -> None:
    out = made(clone, "one", "--url", URL)
    said = provenance(out)
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {each["name"]: each["digest"]["sha256"] for each in said["subject"]}
    own = {release.CHECKSUMS, release.PROVENANCE}
    assert subjects == {name: value for name, value in sums(out).items() if name not in own}
    built = said["predicate"]["buildDefinition"]
    commit, *pins = built["resolvedDependencies"]
    assert commit["uri"] == f"git+{URL}"
    assert commit["digest"]["gitCommit"] == release.git(clone, "rev-parse", "HEAD")
    assert {pin["name"]: pin["digest"]["sha256"] for pin in pins} == {
        name: release.sha256(clone / name) for name in release.PINNED
    }
    assert built["internalParameters"] == {
        "sourceDateEpoch": 1_700_000_000, "hasUncommittedChanges": False, "signature": "none",
    }  # fmt: skip


def test_changes_that_are_not_committed_are_said(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = clone / "charts/predictors/values-laptop.yaml"
    path.write_text(path.read_text() + "# changed\n")
    said = provenance(made(clone, "one"))["predicate"]["buildDefinition"]["internalParameters"]
    assert said["hasUncommittedChanges"] is True
    assert "changes that are not committed" in capsys.readouterr().out


def test_the_archive_has_the_charts_files_of_one_time_owner_and_mode(clone: Path) -> None:
    with chart_of(made(clone, "one")) as archive:
        members = archive.getmembers()
    assert {(each.mtime, each.uid, each.uname, each.mode) for each in members} == {
        (1_700_000_000, 0, "", 0o644)
    }
    names = [each.name for each in members]
    assert names == sorted(names)
    assert {"predictors/Chart.yaml", "predictors/templates/NOTES.txt"} < set(names)
    assert not [name for name in names if "/ci/" in name or "left-behind" in name]


def test_the_chart_names_the_image_and_the_repository_that_are_given(clone: Path) -> None:
    out = made(clone, "one", "--image", IMAGE, "--digest", DIGEST, "--url", URL)
    (archive,) = out.glob("*.tgz")
    shown = subprocess.run(
        [binary("helm"), "template", "x", str(archive), "--kube-version", "1.34.0",
         "-f", str(CHART / "values-laptop.yaml")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(re.findall(r"image: (\S*vision-predictors\S*)", shown.stdout)) == {
        f"{IMAGE}@{DIGEST}"
    }
    about = yaml.safe_load(
        subprocess.run(
            [binary("helm"), "show", "chart", str(archive)], capture_output=True, check=True
        ).stdout
    )
    assert about["home"] == URL
    assert about["sources"] == [URL]


def test_without_an_address_the_chart_names_none(clone: Path) -> None:
    with chart_of(made(clone, "one")) as archive:
        text = archive.extractfile("predictors/Chart.yaml")
        assert text is not None
        about = yaml.safe_load(text.read())
    assert not {"home", "sources"} & set(about)
    assert release.PLACEHOLDER not in json.dumps(about)
    assert about["icon"].startswith("data:image/svg+xml;base64,")


def refused(clone: Path, capsys: pytest.CaptureFixture[str]) -> str:
    words = ["--out", str(clone.parent / "out"), "--sbom", str(clone.parent / "sbom.json")]
    assert release.main([*words, "--no-image"], clone) == 1
    return capsys.readouterr().err


def test_versions_that_differ_are_refused(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = clone / "charts/predictors/Chart.yaml"
    about.write_text(re.sub(r"^version: .*", "version: 9.9.9", about.read_text(), flags=re.M))
    assert "version of charts/predictors/Chart.yaml is 9.9.9, and pyproject" in refused(
        clone, capsys
    )


def test_a_folder_that_is_no_clone_and_a_missing_sbom_are_refused(
    clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (clone.parent / "sbom.json").unlink()
    assert "sbom.json" in refused(clone, capsys)
    (clone / ".git").rename(clone.parent / "elsewhere")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(clone.parent))
    assert "a release is made of a git clone" in refused(clone, capsys)


@pytest.mark.parametrize("name", ["thesis.tex", "notes/", "predictors-notes.tgz/"])
def test_a_folder_with_other_files_is_left_as_it_is(
    clone: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = made(clone, "out")
    capsys.readouterr()
    other = out / name
    if name.endswith("/"):
        other.mkdir()
    else:
        other.write_text("three years of work")
    before = sorted(out.iterdir())
    assert f"has other files as well ({name.rstrip('/')})" in refused(clone, capsys)
    assert sorted(out.iterdir()) == before


def test_a_release_takes_the_place_of_an_earlier_one(clone: Path) -> None:
    out = made(clone, "out")
    before = sums(out)
    (out / "vision-predictors-0.0.1.image.tar").write_text("of an earlier version")
    assert sums(made(clone, "out")) == before


@pytest.mark.parametrize("words", [["--digest", DIGEST], ["--digest", "1", "--image", IMAGE]])
def test_a_digest_needs_its_form_and_an_image(clone: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        release.main(words, clone)


def test_the_image_is_built_and_saved_by_the_first_builder_that_works(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a `docker` that does not work and a `podman` that writes down its words: what a real
    builder makes is shown by tests/e2e/image."""
    folder = clone.parent / "bin"
    folder.mkdir()
    scripts = {
        "docker": "exit 1",
        "podman": f'[ "$1" = info ] || {{ shift; echo "$2" >>{clone.parent}/saved; '
        'echo image >"$2"; }',
        "make": f'echo "$@" >{clone.parent}/made',
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    out = clone.parent / "one"
    words = ["--out", str(out), "--sbom", str(clone.parent / "sbom.json")]
    assert release.main(words, clone) == 0
    version = release.Source.of(clone).version
    image = out / f"vision-predictors-{version}.image.tar"
    assert (clone.parent / "made").read_text() == f"image TAG=vision-predictors:{version}\n"
    assert (clone.parent / "saved").read_text() == f"{image}\n"
    assert image.name in {each["name"] for each in provenance(out)["subject"]}
    (folder / "make").write_text("#!/bin/sh\nexit 3\n")
    assert release.main(words, clone) == 1


def test_make_release_runs_it_with_the_sbom() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", ".venv/.ready", "release", "RELEASE=--url x"],
        cwd=release.ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert ".venv/bin/python -m tools.release --url x" in shown
    assert shown.index("cyclonedx-py") < shown.index("tools.release")
