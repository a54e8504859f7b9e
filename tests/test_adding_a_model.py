"""docs/adding-a-model.md lists every place that the newest model touches, and there are few."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/adding-a-model.md"
SEARCHED = ("predictors", "charts", "benchmarks", "docs", "tools", "tests")
GENERATED = {
    "charts/predictors/README.md",
    "charts/predictors/values.schema.json",
    "charts/predictors/dashboards/predictors.json",
    "docs/configuration.md",
    "docs/metrics.md",
}
RECORDS = (
    "CHANGELOG.md", "docs/performance.md", "docs/adr/", "benchmarks/results/",
    "tests/product/test_not_offered.py",  # names what is refused
)  # fmt: skip
MOST_FILES = 13


def listed() -> tuple[str, set[str]]:
    """The model's folder name, and the files below its heading."""
    heading, _, places = PAGE.read_text().partition("## The places of `")[2].partition("`\n")
    return heading, set(re.findall(r"^\* `([^`]+)`: ", places, re.MULTILINE))


def is_own(path: str, model: str) -> bool:
    """True for a file of the model, or its test."""
    return path.startswith((f"predictors/models/{model}/", f"tests/models/{model}/"))


def files() -> list[Path]:
    inside = (path for folder in SEARCHED for path in (ROOT / folder).rglob("*"))
    return [path for path in (*ROOT.iterdir(), *inside) if path.is_file()]


def places(model: str) -> set[str]:
    """Every other file that names the model: its folder, its class or its released name."""
    spellings = re.compile(re.escape(model).replace("_", "[-_. ]?"), re.IGNORECASE)
    found = set()
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if "__pycache__" in name or name.startswith(RECORDS) or is_own(name, model):
            continue
        if path in (PAGE, Path(__file__)) or name in GENERATED:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if spellings.search(text):
            found.add(name)
    return found


def test_the_list_names_every_place_and_no_other() -> None:
    model, named = listed()
    assert (ROOT / "predictors/models" / model).is_dir()
    assert named == places(model)


def test_a_model_of_a_known_task_touches_few_files() -> None:
    _, named = listed()
    assert 0 < len(named) <= MOST_FILES


def test_no_engine_protocol_or_setting_names_a_model_by_its_folder() -> None:
    models = [path.name for path in (ROOT / "predictors/models").iterdir() if path.is_dir()]
    names = {name for name in models if "_" in name and not name.startswith("__")}
    assert "qwen3_vl" in names
    for folder in ("chat", "diffusion", "serving", "protocol", "compute", "workers"):
        for path in (ROOT / "predictors" / folder).rglob("*.py"):
            assert not [name for name in names if name in path.read_text()], path
