"""Files are installed by their hashes, and no version with a known hole."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.deploy.dockerfile import ROOT

CONSTRAINTS = (ROOT / "constraints.txt").read_text()
HASHES = (ROOT / "hashes.txt").read_text()
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)", CONSTRAINTS, re.M))
FLOORS = tomllib.loads((ROOT / "tests/deploy/cve_floors.toml").read_text())
# packages that the index does not have, and whose files therefore have no hash
UNHASHED: tuple[str, ...] = ()
UV = str(Path(sys.executable).with_name("uv"))


def test_hashes_are_of_the_very_names_and_versions_of_the_constraints() -> None:
    entries = re.sub(r" \\\n    --hash=sha256:[0-9a-f]{64}(?![0-9a-f])", "", HASHES)
    assert entries == CONSTRAINTS, "make hashes"


def test_every_package_has_hashes_and_none_is_listed_twice() -> None:
    assert UNHASHED == ()
    for entry in re.split(r"\n(?=\S)", HASHES):
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)
        assert hashes, entry
        assert len(hashes) == len(set(hashes)), entry


def test_neither_list_names_an_address_or_an_index() -> None:
    assert not re.search(r"://|/|@|index|find-links", CONSTRAINTS + HASHES)


def test_setup_and_sbom_install_by_hash() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installs = [line for line in makefile.splitlines() if "pip install" in line]
    others = r"\$\((CLIENTS|INSTRUCTOR|OPENAPI_CLIENT|PAGE|FUZZ|SITE|NEWEST)\)"  # of tests
    ours = [line for line in installs if not re.search(others, line)]
    assert len(ours) == 3
    for line in ours:
        assert "-c hashes.txt" in line or "--require-hashes" in line


def wheel(folder: Path, name: str) -> str:
    """Write a wheel of one empty module; gives its sha256."""
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    kind = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        f"{name}.py": "",
        f"{name}-1.0.dist-info/METADATA": about,
        f"{name}-1.0.dist-info/WHEEL": kind,
    }
    rows = [f"{path},{_record(text)},{len(text)}\n" for path, text in files.items()]
    files[f"{name}-1.0.dist-info/RECORD"] = "".join([*rows, f"{name}-1.0.dist-info/RECORD,,\n"])
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _record(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
    return f"sha256={digest.decode().rstrip('=')}"


@pytest.mark.parametrize(
    ("flags", "listed", "refused"),
    [
        ([], "right", None),
        ([], "wrong", "Hash mismatch"),
        (["--require-hashes"], "right", None),
        (["--require-hashes"], "wrong", "Hash mismatch"),
        (["--require-hashes"], "none", "hash"),
    ],
    ids=["setup", "setup-tampered", "image", "image-tampered", "image-unlisted"],
)
def test_a_file_with_another_hash_is_not_installed(
    tmp_path: Path, flags: list[str], listed: str, refused: str | None
) -> None:
    """`uv` as `make setup` and the Dockerfile call it, on a wheel that is made here."""
    digest = wheel(tmp_path, "tiny")
    shown = {"right": digest, "wrong": digest[:-1] + ("0" if digest[-1] != "0" else "1")}
    entry = "tiny==1.0" + (f" \\\n    --hash=sha256:{shown[listed]}" if listed in shown else "")
    hashes = tmp_path / "hashes.txt"
    hashes.write_text(entry + "\n")
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("tiny==1.0\n" if flags else "tiny>=1\n")
    command = [
        UV, "pip", "install", "--no-config", "--offline", "--no-index", "--find-links",
        str(tmp_path), "--cache-dir", str(tmp_path / "cache"), "--python", sys.executable,
        "--target", str(tmp_path / "there"), *flags, "-c", str(hashes), "-r", str(wanted),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == (refused is None), done.stderr
    assert (tmp_path / "there" / "tiny.py").exists() == (refused is None)
    if refused:
        assert refused in done.stderr


def test_no_pin_is_below_the_floor_of_a_known_hole() -> None:
    floors = {name: each["floor"] for name, each in FLOORS["python"].items()}
    assert set(floors) <= set(PINS), "a floor of a package that is not installed"
    below = {name for name, floor in floors.items() if Version(PINS[name]) < Version(floor)}
    assert below == set(FLOORS["borne"])


def test_a_floor_that_is_not_kept_is_held_back_by_another_package() -> None:
    """The reason for the only one: torch's own requirement."""
    assert FLOORS["borne"].keys() == {"setuptools"}
    (held,) = [
        each for line in requires("torch") or () if (each := Requirement(line)).name == "setuptools"
    ]
    assert not held.specifier.contains(FLOORS["python"]["setuptools"]["floor"])


def test_every_floor_names_an_advisory() -> None:
    named = re.compile(r"CVE-\d{4}-\d{4,}|GHSA(-[23456789cfghjmpqrvwx]{4}){3}|PYSEC-\d{4}-\d+")
    for table in (FLOORS["python"], FLOORS["go"]):
        for name, each in table.items():
            assert each["fixes"], name
            assert all(named.fullmatch(fixed) for fixed in each["fixes"]), name


def test_the_go_modules_of_the_cluster_keep_their_floors() -> None:
    module = (ROOT / "tests/e2e/cluster/build/go.mod").read_text()
    for name, each in FLOORS["go"].items():
        used = re.findall(rf"{re.escape(name)} (?:=> \S+ )?v(\S+)", module)
        assert used, name
        assert all(Version(version) >= Version(each["floor"]) for version in used), name


def test_the_dependencies_of_the_project_do_not_admit_a_hole() -> None:
    """`pip install` without our constraints resolves to nothing below a floor either."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        requirement = Requirement(line)
        known = FLOORS["python"].get(requirement.name)
        if known and requirement.name not in FLOORS["borne"]:
            lowest = [each.version for each in requirement.specifier if each.operator == ">="]
            assert max(map(Version, lowest)) >= Version(known["floor"]), line
