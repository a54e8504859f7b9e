"""The house rules that a machine can hold: import contracts, mirrored rooms, sizes, names."""

from __future__ import annotations

import ast
import inspect
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import zip_longest
from pathlib import Path

import pytest

import predictors

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "predictors"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in SOURCES if path.name != "__init__.py"]
OTHER_TREES = ("tests", "tools", "benchmarks", "charts", "checkpoints")
WRITTEN = [
    *MODULES,
    *(path for tree in OTHER_TREES for path in sorted((ROOT / tree).rglob("*.py"))),
]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
SOFT_FILE_LINES = 350
MAX_FILE_LINES = 400
# why a file is longer than the soft limit
LONG_FILES = {
    "__main__.py": "a function per verb, whose docstring is the help of the verb",
    "base.py": "the path of a request is read on one screen after the other",
    "chat/decoder/attention_kernels.py": "decode and prompt kernels share their Triton functions",
    "serving/job_table.py": "one lock guards all of it",
    "protocol/http/connection.py": "the stages of one connection share its buffers",
    "workers/pool.py": "the pool, its processes and their memory are one lock's state",
}
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 10
BANNED_NAMES = {
    "manager", "helper", "helpers", "util", "utils", "common", "misc", "context", "data",
    "processor",
}  # fmt: skip
# the engine thread, a worker process, the edge that turns whatever is left into a bare "internal
# error", and files of others, which libraries of others read: those raise anything
BROAD_EXCEPTS_ALLOWED = {
    "serving/loop.py",
    "serving/recording.py",
    "serving/warm_plan.py",  # a shape that fails is refused, and the others are served
    "workers/process.py",
    "protocol/outcomes.py",
    "protocol/certificates.py",  # the thread that follows the files outlives a bug
    "compute/checkpoint/folder.py",
    "chat/grammars/compiler.py",  # panics of the library, carried to the thread that asked
    "chat/grammars/lark.py",  # the library's converter raises kinds of its own
    "chat/template_options.py",  # a template computes with a caller's values
    "chat/row_events.py",  # a callback of the loop, which others wait for; carried to its request
}

MAX_SENTENCES = 4
# words of a private language, which the docstrings once had
RIDDLES = re.compile(
    r"\b(knows? (no|neither|nothing|not)|nobody|whoever|anew|aught|in company|wish(es)?)\b"
    r"|^(What|Whether|Who) ",
    re.IGNORECASE,
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    """The path inside the package, for messages and parameter ids."""
    return path.relative_to(PACKAGE).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions_of(path: Path) -> Iterator[Function]:
    """Every function and method of a file."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(function: Function) -> int:
    """Lines from `def` to the end of the body, its docstring left out: prose is not complexity."""
    assert function.end_lineno is not None
    first = function.body[0]
    prose = 0
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        assert first.end_lineno is not None
        prose = first.end_lineno - first.lineno + 1
    return function.end_lineno - function.lineno + 1 - prose


def test_the_import_contracts_hold() -> None:
    # in a process of its own: import-linter turns off every logger that exists when it starts
    command = "from importlinter import cli; raise SystemExit(cli.lint_imports(no_cache=True))"
    held = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert held.returncode == 0, held.stdout + held.stderr


def test_the_contracts_that_were_agreed_are_written_down() -> None:
    names = {contract["name"] for contract in CONTRACTS["contracts"]}
    assert names >= {
        "The house is layered; models and siblings are strangers",
        "Models do not know each other",
        "The serving core is plain Python",
        "Wire formats never touch tensors",
        "Engines, models and shared torch code know no HTTP",
        "Shared torch code imports no model library",
    }


def test_a_file_fits_on_a_few_screens() -> None:
    lines = {relative(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > MAX_FILE_LINES} == {}
    long = {name for name, count in lines.items() if count > SOFT_FILE_LINES}
    assert long == set(LONG_FILES), "see LONG_FILES"


def test_a_function_fits_on_one_screen() -> None:
    too_long = {
        (relative(path), each.name): lines_of(each)
        for path in MODULES
        for each in functions_of(path)
        if lines_of(each) > MAX_FUNCTION_LINES
    }
    assert too_long == {}


def test_the_median_function_is_short() -> None:
    sizes = [lines_of(f) for path in MODULES for f in functions_of(path)]
    assert statistics.median(sizes) <= MAX_MEDIAN_LINES


def first_paragraph(path: Path) -> str:
    return (ast.get_docstring(parsed(path)) or "").split("\n\n")[0]


def test_a_module_opens_by_saying_what_it_does() -> None:
    """One paragraph: what it does and does not know."""
    assert [relative(path) for path in MODULES if len(first_paragraph(path)) < 60] == []


def test_no_module_or_class_has_a_name_that_names_nothing() -> None:
    found = []
    for path in SOURCES:
        classes = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef))
        for name in (path.stem, *(node.name for node in classes)):
            words = {*re.findall(r"[A-Z]?[a-z]+", name), *name.split("_")}
            if {word.lower() for word in words} & BANNED_NAMES:
                found.append((relative(path), name))
    assert found == []


def test_a_class_or_public_function_has_a_name_of_its_own() -> None:
    """Inside models/ the names are those of the task's Protocol, the same in every model."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        if relative(path).startswith("models/"):
            continue
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(relative(path))
    assert {name: at for name, at in places.items() if len(at) > 1} == {}


def num_sentences(text: str) -> int:
    return len(re.findall(r"[.!?:](?:\s|$)", text)) - text.count(": ")


def test_a_module_says_it_in_at_most_four_sentences() -> None:
    first = {relative(path): first_paragraph(path) for path in MODULES}
    assert [name for name, text in first.items() if num_sentences(text) > MAX_SENTENCES] == []


def docstrings_of(node: ast.AST) -> Iterator[str]:
    """Those of the module, its classes and functions, and the strings behind the assignment of a
    constant or a field."""
    if isinstance(node, ast.Module | ast.ClassDef | Function):
        yield ast.get_docstring(node) or ""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        block = getattr(node, part, None)
        if not isinstance(block, list):  # `body` of a lambda is none
            continue
        for statement, following in zip_longest(block, block[1:]):
            yield from docstrings_of(statement)
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(
                following, ast.Expr
            ):
                text = following.value
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield inspect.cleandoc(text.value)


def test_a_docstring_is_found_behind_all_that_it_may_describe() -> None:
    text = """
'module'
LEAST = 1
'constant'
class Kind:
    'class'
    size: int
    'field'
    def run(self):
        'function'
        self.left = 1
        'attribute'
if LEAST:
    pass
else:
    MOST = 1
    'branch'
    print('no docstring')
"""
    found = {"module", "constant", "class", "field", "function", "attribute", "branch"}
    assert set(docstrings_of(ast.parse(text))) == found


def test_a_docstring_speaks_plainly() -> None:
    found = [
        (path.relative_to(ROOT).as_posix(), text)
        for path in WRITTEN
        for text in docstrings_of(parsed(path))
        if RIDDLES.search(text)
    ]
    assert found == []


# every package reads settings, and none needs to know the group's file
MARKERS = [p for p in SOURCES if p.name == "__init__.py" and p.parent.name != "settings"]


@pytest.mark.parametrize("path", MARKERS, ids=relative)
def test_a_package_marker_holds_the_version_at_most(path: Path) -> None:
    code = [s for s in parsed(path).body if not isinstance(s, ast.Expr)]
    names = [ast.unparse(s.targets[0]) for s in code if isinstance(s, ast.Assign)]
    assert len(names) == len(code)
    assert names == (["__version__"] if path.parent == PACKAGE else [])


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == predictors.__version__


def test_broad_excepts_are_where_they_were_agreed() -> None:
    found = set()
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ExceptHandler) and is_broad(node.type) and not reraises(node):
                found.add(relative(path))
    assert found - BROAD_EXCEPTS_ALLOWED == set()


def reraises(handler: ast.ExceptHandler) -> bool:
    """True for a handler that ends by raising what it caught: it cleans up, it decides nothing."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def is_broad(kind: ast.expr | None) -> bool:
    """True for a handler that catches every exception."""
    return kind is None or (
        isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"}
    )


def test_only_settings_and_the_root_read_the_environment() -> None:
    readers = {
        relative(p) for p in MODULES if re.search(r"\bos\.(environ|getenv)\b", p.read_text())
    }
    assert readers <= {"__main__.py"}


def test_only_metrics_constructs_a_series() -> None:
    kinds = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"}
    constructing = {
        relative(path)
        for path in MODULES
        if "prometheus_client" in path.read_text()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".")[-1] in kinds
    }
    assert constructing == {"metrics.py"}


def test_nothing_sleeps_or_prints_or_uses_a_global_seed() -> None:
    banned = re.compile(
        r"\btime\.sleep\(|\btorch\.manual_seed\(|\brandom\.seed\(|^\s*global\s", re.MULTILINE
    )
    found = {relative(p): m.group() for p in MODULES if (m := banned.search(p.read_text()))}
    assert found == {}


def test_no_module_imports_the_package_root_but_for_the_version() -> None:
    taken = {
        alias.name
        for path in MODULES
        for node in ast.walk(parsed(path))
        for alias in root_imports(node)
        if not (PACKAGE / f"{alias.name}.py").exists() and not (PACKAGE / alias.name).is_dir()
    }
    assert taken <= {"__version__"}


def root_imports(node: ast.AST) -> list[ast.alias]:
    """The modules that a statement imports from the package root."""
    if isinstance(node, ast.Import):
        return [alias for alias in node.names if alias.name == "predictors"]
    if isinstance(node, ast.ImportFrom) and node.module == "predictors":
        return node.names
    return []


def test_the_pins_hold_names_and_versions_only() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][\w.!+-]*( ; [^/@]+)?", line), line
