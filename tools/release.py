"""Packs a release into a folder, with the same bytes each time: the chart, the SBOM, a provenance
statement and checksums, and the image where a builder works. `make release` runs it.

Nothing is signed or published here: .github/workflows/release.yaml does that.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.chart import binary

ROOT = Path(__file__).resolve().parents[1]
CHART = Path("charts/predictors")
CHECKSUMS = "SHA256SUMS"
PROVENANCE = "provenance.intoto.json"
BUILDERS = ("docker", "podman", "buildah")
PINNED = ("constraints.txt", "hashes.txt", "pyproject.toml", "Dockerfile")
FILES = ("predictors-*.tgz", "vision-predictors-*", PROVENANCE, CHECKSUMS)
"""Patterns of a release's files."""
PLACEHOLDER = "https://vision-predictors.example"
"""Stands in Chart.yaml for the repository's address, which a clone does not know."""


class ReleaseError(Exception):
    """A failure that a person can mend, in a sentence."""


@dataclass(frozen=True)
class Source:
    """The tree that is released: its version, its commit, and the seconds of that commit."""

    root: Path
    version: str
    commit: str
    is_dirty: bool
    seconds: int

    @classmethod
    def of(cls, root: Path) -> Source:
        """Reads the tree; raises `ReleaseError` where it is no clone, or its versions differ."""
        version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
        chart = (root / CHART / "Chart.yaml").read_text()
        for key in ("version", "appVersion"):
            found = re.search(rf'^{key}: "?([^"\n]*)', chart, re.MULTILINE)
            if found is None or found[1] != version:
                raise ReleaseError(
                    f"{key} of {CHART}/Chart.yaml is {found and found[1]}, and pyproject.toml says "
                    f"{version}: give both the version of the release"
                )
        seconds = os.environ.get("SOURCE_DATE_EPOCH") or git(root, "log", "-1", "--format=%ct")
        dirty = git(root, "status", "--porcelain", "--untracked-files=no")
        return cls(root, version, git(root, "rev-parse", "HEAD"), bool(dirty), int(seconds))


@dataclass(frozen=True)
class Names:
    """Where the release will be found. Empty: not known, and the chart says nothing of it."""

    image: str = ""
    digest: str = ""
    url: str = ""
    builder: str = f"{PLACEHOLDER}/builders/make-release"


def git(root: Path, *words: str) -> str:
    """The output of git without its last line break; raises `ReleaseError`."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"a release is made of a git clone: {done.stderr.strip()}")
    return done.stdout.strip()


def sha256(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stage_chart(source: Source, names: Names, folder: Path) -> Path:
    """Copies the chart's files that git has, with the names of the release written in."""
    for name in git(source.root, "ls-files", "--", str(CHART)).splitlines():
        target = folder / Path(name).relative_to(CHART.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.root / name, target)
    about = folder / CHART.name / "Chart.yaml"
    text = re.sub(r"^# placeholders:.*\n", "", about.read_text(), flags=re.M)
    if names.url:
        text = text.replace(PLACEHOLDER, names.url)
    else:
        text = re.sub(rf"^\w+: \[?{re.escape(PLACEHOLDER)}.*\n", "", text, flags=re.M)
    about.write_text(text)
    values = folder / CHART.name / "values.yaml"
    text = values.read_text()
    for key, value in (("repository", names.image), ("digest", names.digest)):
        if value:
            text = re.sub(rf"^  {key}: .*", f'  {key}: "{value}"', text, count=1, flags=re.M)
    values.write_text(text)
    return folder / CHART.name


def normalised(archive: bytes, seconds: int) -> bytes:
    """A tar.gz with the same files, sorted, all of one time, owner and mode."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as read,
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=seconds, filename="") as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as written,
    ):
        for member in sorted(read.getmembers(), key=lambda each: each.name):
            about = tarfile.TarInfo(member.name)
            about.size, about.mtime, about.mode = member.size, seconds, 0o644
            written.addfile(about, read.extractfile(member))
    return packed.getvalue()


def pack_chart(source: Source, names: Names, out: Path) -> Path:
    """The archive of the chart in `out`; raises `ReleaseError` with Helm's words."""
    with tempfile.TemporaryDirectory() as folder:
        chart = stage_chart(source, names, Path(folder))
        done = subprocess.run(
            [binary("helm"), "package", str(chart), "--destination", folder],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise ReleaseError(f"helm can't package the chart: {done.stderr.strip()}")
        name = f"predictors-{source.version}.tgz"
        target = out / name
        target.write_bytes(normalised((Path(folder) / name).read_bytes(), source.seconds))
    return target


def working_builder() -> str | None:
    """The first builder of images that answers; None where there is none."""
    for name in filter(shutil.which, BUILDERS):
        if subprocess.run([name, "info"], capture_output=True).returncode == 0:
            return name
    return None


def pack_image(source: Source, builder: str, out: Path) -> Path:
    """The image as an archive for `docker load`; raises `ReleaseError` where it is not built."""
    tag = f"vision-predictors:{source.version}"
    target = out / f"vision-predictors-{source.version}.image.tar"
    save = [builder, "save", "--output", str(target), tag]
    if builder == "buildah":
        save = [builder, "push", tag, f"docker-archive:{target}:{tag}"]
    for command in (["make", "image", f"TAG={tag}"], save):
        if subprocess.run(command, cwd=source.root).returncode:
            raise ReleaseError(f"no image: `{' '.join(command)}` failed; --no-image leaves it out")
    return target


def statement(source: Source, names: Names, subjects: Sequence[Path]) -> dict[str, Any]:
    """An in-toto statement with SLSA's provenance (v1) of the files. It has no signature."""
    commit = {"uri": f"git+{names.url or 'file:.'}", "digest": {"gitCommit": source.commit}}
    pins = [{"name": name, "digest": {"sha256": sha256(source.root / name)}} for name in PINNED]
    helm = subprocess.run(
        [binary("helm"), "version", "--template", "{{.Version}}"], capture_output=True, text=True
    ).stdout
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": each.name, "digest": {"sha256": sha256(each)}} for each in subjects],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{PLACEHOLDER}/make-release/v1",
                "externalParameters": {
                    "version": source.version,
                    "imageRepository": names.image,
                    "imageDigest": names.digest,
                    "sourceUrl": names.url,
                },
                "internalParameters": {
                    "sourceDateEpoch": source.seconds,
                    "hasUncommittedChanges": source.is_dirty,
                    "signature": "none",
                },
                "resolvedDependencies": [commit, *pins],
            },
            "runDetails": {"builder": {"id": names.builder, "version": {"helm": helm}}},
        },
    }


def clear(out: Path) -> None:
    """Makes `out` an empty folder. Deletes the files of an earlier release alone; raises
    `ReleaseError` where there are others."""
    out.mkdir(parents=True, exist_ok=True)
    found = sorted(out.iterdir())
    others = [each.name for each in found if not any(map(each.match, FILES)) or each.is_dir()]
    if others:
        raise ReleaseError(
            f"{out} has other files as well ({', '.join(others[:3])}): give an --out of its own"
        )
    for each in found:
        each.unlink()


def write_release(source: Source, names: Names, sbom: Path, out: Path, builder: str | None) -> None:
    """All files of the release, into `out` as `clear` leaves it. Raises `ReleaseError`."""
    clear(out)
    listed = out / f"vision-predictors-{source.version}.cdx.json"
    shutil.copyfile(sbom, listed)
    files = [pack_chart(source, names, out), listed]
    if builder:
        files.append(pack_image(source, builder, out))
    proof = out / PROVENANCE
    proof.write_text(json.dumps(statement(source, names, sorted(files)), indent=2) + "\n")
    rows = [f"{sha256(each)}  {each.name}\n" for each in sorted([*files, proof])]
    (out / CHECKSUMS).write_text("".join(rows))


def main(words: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__)
    parser.add_argument("--out", type=Path, default=root / "out/release")
    parser.add_argument("--sbom", type=Path, default=root / "out/sbom.json", help="of `make sbom`")
    parser.add_argument("--image", default="", help="repository that the chart names")
    parser.add_argument("--digest", default="", help="digest of that image, sha256:...")
    parser.add_argument("--url", default="", help="address of the repository, for the chart")
    parser.add_argument("--builder", default=Names.builder, help="who built it, for provenance")
    parser.add_argument("--no-image", action="store_true", help="build no image")
    said = parser.parse_args(words)
    if said.digest and not (said.image and re.fullmatch(r"sha256:[0-9a-f]{64}", said.digest)):
        parser.error("--digest is sha256: and 64 hex digits, and needs --image")
    names = Names(said.image, said.digest, said.url, said.builder)
    try:
        builder = None if said.no_image else working_builder()
        source = Source.of(root)
        write_release(source, names, said.sbom, said.out, builder)
    except (ReleaseError, OSError) as error:
        print(f"no release: {error}", file=sys.stderr)
        return 1
    print((said.out / CHECKSUMS).read_text(), end="")
    if not builder:
        print(f"no image: {'not asked for' if said.no_image else 'no builder works here'}")
    if source.is_dirty:
        print("the tree has changes that are not committed; the provenance says so")
    print(f"{PROVENANCE} has no signature: release.yaml signs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
