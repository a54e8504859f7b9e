"""The documents say what is there: knobs, links, make targets, rooms, decisions."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from tools.docs import generated, stale

ROOT = Path(__file__).resolve().parents[1]
MAX_COLUMNS = 160
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "checkpoints").glob("*/README.md"),
    ]
)
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)")


def page_id(path: Path) -> str:
    """The page, seen from the root."""
    return path.relative_to(ROOT).as_posix()


def targets() -> set[str]:
    """The targets of the Makefile that a person would call."""
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_generated_file_is_current() -> None:
    assert stale(generated()) == [], "run `make docs`"


def test_every_place_names_the_pythons_that_the_package_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["project"]["requires-python"])
    assert wanted
    first, last = int(wanted[1]), int(wanted[2]) - 1
    for page in ("README.md", "docs/index.md", "CONTRIBUTING.md", "Makefile", "Dockerfile"):
        assert f"3.{first} to 3.{last}" in (ROOT / page).read_text(), page
    assert f"(3, {first}) <= v[:2] <= (3, {last})" in (ROOT / "Makefile").read_text()
    assert project["tool"]["ruff"]["target-version"] == f"py3{first}"
    for name in ("ci", "nightly"):
        text = (ROOT / f".github/workflows/{name}.yaml").read_text()
        assert f'python: ["3.{first}", "3.{last}"]' in text, name


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    inside = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in inside if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_page_names_no_make_target_that_does_not_exist(page: Path) -> None:
    named = set(re.findall(r"`make ([a-z][a-z-]*)[`, ]", page.read_text()))
    assert named <= targets()


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=page_id)
def test_a_page_names_no_file_of_the_package_that_does_not_exist(page: Path) -> None:
    named = set(
        re.findall(
            r"(?<![\w/])((?:predictors|tests|benchmarks|docs|checkpoints)/[\w/.-]+\.(?:py|md|json))\b",
            page.read_text(),
        )
    )
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_every_decision_has_its_five_parts_and_a_row_in_the_list() -> None:
    index = (ROOT / "docs/adr/README.md").read_text()
    pages = sorted((ROOT / "docs/adr").glob("0*.md"))
    assert len(pages) >= 7
    for page in pages:
        text = page.read_text()
        assert f"({page.name})" in index, f"{page.name} is not in the list"
        assert text.startswith(f"# {page.name[:4]} ")
        parts = [
            part
            for part in ("Context", "Decision", "Consequences", "Drawbacks", "Alternatives")
            if f"\n## {part}" not in text
        ]
        assert parts == [], f"{page.name} lacks {parts}"


def test_the_targets_that_were_promised_exist_and_make_their_own_environment() -> None:
    promised = {
        "demo",
        "serve",
        "test",
        "lint",
        "type",
        "bench-cpu",
        "checkpoints",
        "evaluate-checkpoints",
    }
    assert promised <= targets()
    makefile = (ROOT / "Makefile").read_text()
    for target in promised:
        assert re.search(rf"^{target}: \$\(STAMP\)", makefile, re.MULTILINE), target


def test_ci_runs_what_people_run() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert [
        line.split()[-1] for line in script.splitlines() if re.match(r"stage \w+ make ", line)
    ] == [
        "setup",
        "lint",
        "type",
        "test",
        "test-processes",
        "test-benchmarks",
        "test-observe",
        "test-load",
        "test-clients",
        "test-page",
        "site",
        "fuzz-quick",
        "test-deploy",
        "e2e",
    ]
    workflows = ROOT / ".github/workflows"
    assert "- run: sudo --preserve-env=PATH .ci/run" in (workflows / "nightly.yaml").read_text()
    quick = re.findall(r"- run: (.+)", (workflows / "ci.yaml").read_text())
    assert quick == ["make check", "make test", "make test-processes", "make test-benchmarks"]


def test_every_package_has_a_line_in_the_architecture() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    listed = page.split("## Packages, from top to bottom\n")[1].split("\n## ")[0]
    heads = re.findall(r"^\* (`[^:]+`):", listed, re.MULTILINE)
    named = {name for head in heads for name in re.findall(r"`([\w/]+)`", head)}
    package = ROOT / "predictors"
    models = {f"models/{path.name}" for path in (package / "models").iterdir() if path.is_dir()}
    wanted = {path.stem for path in package.iterdir()} - {"__init__", "models"} | models
    assert {name for name in wanted - named if not name.endswith("__pycache__")} == set()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_line_of_a_page_is_longer_than_160_columns(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [
        n for n, line in enumerate(lines, 1) if len(line) > MAX_COLUMNS and not is_example(line)
    ] == []


def is_example(line: str) -> bool:
    """A line of a log or a body, which can't be broken."""
    return line.startswith("{")


def test_the_readmes_figures_are_the_ones_that_were_measured() -> None:
    edges = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())["edges"]
    readme = (ROOT / "README.md").read_text()
    latency, rate = edges["latency_p50_ms"], edges["rate_16_clients"]
    assert f"| {latency['ours']:.2f} ms | {latency['peer']:.2f} ms |" in readme
    assert f"| {rate['ours']:,.0f} requests/s | {rate['peer']:,.0f} requests/s |" in readme


def test_no_page_or_pin_names_a_download_address_or_a_path_of_this_machine() -> None:
    suspicious = re.compile(
        r"/root/|/work/|/home/|files\.pythonhosted|pypi\.org|index-url|find-links", re.IGNORECASE
    )
    for path in [*PAGES, ROOT / "constraints.txt", ROOT / "pyproject.toml"]:
        assert not suspicious.search(path.read_text()), page_id(path)
