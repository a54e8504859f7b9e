"""The Dockerfile's promises: small changes build fast, nothing secret or heavy slips in, and what
runs has no particular user."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.dockerfile import ROOT, Stage, is_sent, read_stages
from tests.e2e.image import recipe

ARGUMENTS, STAGES = read_stages()
BY_NAME = {stage.name: stage for stage in STAGES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IGNORED = [
    line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"
]


def beneath(name: str) -> list[Stage]:
    """A stage and all that it is built on."""
    stage = BY_NAME[name]
    return [stage, *(beneath(stage.base) if stage.base in BY_NAME else [])]


def needed_by(name: str) -> set[str]:
    """The names of all stages whose change rebuilds this one."""
    found = {name}
    for stage in beneath(name):
        found |= {stage.name}
        for other in stage.others:
            found |= needed_by(other)
    return found


def files_sent() -> set[str]:
    """The repository's files that the build gets."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {path for path in listed.stdout.split() if is_sent(path, IGNORED)}


def test_a_build_that_names_no_target_gives_the_server() -> None:
    assert STAGES[-1].name == "server"


def test_the_base_is_pinned_by_a_tag_and_can_be_another() -> None:
    assert re.fullmatch(r"python:3\.\d+-slim", ARGUMENTS["BASE_IMAGE"])
    assert BY_NAME["system"].base == "${BASE_IMAGE}"
    assert ARGUMENTS["ATTENTION_IMAGE"] == "${BASE_IMAGE}"  # so that no CUDA image is pulled


def test_the_server_has_no_weights_and_the_demo_has_both() -> None:
    copied = [source for stage in beneath("server") for source in stage.sources]
    assert not copied, "the server is made of other stages only"
    assert BY_NAME["demo"].sources == ["checkpoints/shapes-flux", "checkpoints/shapes-qwen-vl"]
    assert [target.split()[-1] for target in BY_NAME["demo"].of("COPY")] == [
        "/opt/checkpoints/shapes-flux",
        "/opt/checkpoints/shapes-qwen-vl",
    ]
    assert needed_by("server").isdisjoint({"demo"})


def test_the_process_is_an_unnamed_user_under_an_init() -> None:
    runtime = BY_NAME["runtime"]
    assert runtime.of("USER") == ["10001:10001"]
    assert json.loads(runtime.of("ENTRYPOINT")[0]) == [
        "tini", "-g", "--", "python", "-m", "predictors",
    ]  # fmt: skip
    assert not [step for stage in beneath("server") for step in stage.of("CMD", "HEALTHCHECK")]
    assert not BY_NAME["server"].steps


def test_the_root_may_be_read_only() -> None:
    environment = " ".join(BY_NAME["runtime"].of("ENV"))
    assert "HOME=/tmp" in environment
    assert "PYTHONDONTWRITEBYTECODE=1" in environment
    assert "HOST=0.0.0.0" in environment
    assert BY_NAME["runtime"].of("WORKDIR") == ["/tmp"]
    assert "install -d -o 10001 -g 0 -m 0770 /var/cache/predictors" in system_step()


def system_step() -> str:
    return BY_NAME["system"].of("RUN")[0]


def test_the_labels_say_what_it_is() -> None:
    labels = dict(re.findall(r'image\.(\w+)="([^"]*)"', BY_NAME["runtime"].of("LABEL")[0]))
    assert labels == {
        "title": PROJECT["name"],
        "description": PROJECT["description"],
        "version": "${VERSION}",
        "revision": "${REVISION}",
        "source": "${SOURCE}",
        "licenses": PROJECT["license"],
    }
    base = re.search(r'image\.base\.name="([^"]*)"', BY_NAME["runtime"].of("LABEL")[0])
    assert base
    assert base[1] == "${BASE_IMAGE}"  # with the digest of a build that is given one
    assert "BASE_IMAGE" in BY_NAME["runtime"].of("ARG")
    assert recipe.default_of("VERSION") == PROJECT["version"]


def test_only_dependencies_and_constraints_rebuild_the_wheels() -> None:
    stages = needed_by("wheels")
    assert stages == {"system", "requirements", "attention", "wheels"}
    sources = {source for name in stages for source in BY_NAME[name].sources}
    assert sources == {"pyproject.toml", "constraints.txt", "hashes.txt"}
    assert not BY_NAME["wheels"].sources
    # a fresh clone has other dates, and layers are told apart by them
    assert "touch -d @0" in BY_NAME["requirements"].of("RUN")[0]


def test_the_wheels_are_those_of_hashes_txt_and_nothing_is_compiled_for_them() -> None:
    step = BY_NAME["wheels"].of("RUN")[0]
    assert "--require-hashes -c /opt/requirements/hashes.txt" in " ".join(step.split())
    assert "-r /opt/requirements/requirements.txt" in step
    assert "--only-binary :all:" in step
    assert "--compile-bytecode" in step


def test_the_installers_are_installed_by_hash_too() -> None:
    """uv, which checks the others, and setuptools, which builds the product."""
    for stage, name in (("wheels", "/opt/requirements/uv.txt"), ("product", "setuptools.txt")):
        step = " ".join(BY_NAME[stage].of("RUN")[0].split())
        assert f"--no-deps --require-hashes -r {name}" in step


def test_each_dependency_gets_the_version_of_constraints_txt() -> None:
    step = BY_NAME["requirements"].of("RUN")[0]
    program = re.search(r'python3 -c "(.*?)"', step)
    assert program
    extras = recipe.default_of("EXTRAS").split()
    assert extras == ["otel", "fa3", "gpu", "c2pa"]
    with (ROOT / "pyproject.toml").open("rb") as project:
        said = subprocess.run(
            [sys.executable, "-c", re.sub(r"\s{2,}", " ", program[1]),
             str(ROOT / "constraints.txt"), *extras],
            stdin=project, capture_output=True, text=True, check=True,
        )  # fmt: skip
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M))
    wanted = []
    for dependency in recipe.requirements():
        asked, _, where = dependency.partition(";")
        name = re.split(r"[<>=!~ ]", asked)[0]
        wanted.append(f"{name}=={pins[name]} " + (f";{where}" if where else ""))
    assert said.stdout.splitlines() == wanted


def test_an_entry_of_hashes_txt_is_cut_out_whole(tmp_path: Path) -> None:
    loop = re.search(r"for tool in .*?done;", BY_NAME["requirements"].of("RUN")[0])
    assert loop
    moved = loop[0].replace("/src/hashes.txt", str(ROOT / "hashes.txt"))
    moved = moved.replace("/opt/requirements/", f"{tmp_path}/")
    subprocess.run(["sh", "-euc", moved], check=True)
    whole = (ROOT / "hashes.txt").read_text()
    for name in ("uv", "setuptools"):
        cut = (tmp_path / f"{name}.txt").read_text()
        assert cut in whole
        assert cut.startswith(f"{name}==")
        assert cut.count("==") == 1
        assert cut.count("--hash=sha256:") > 1


def test_a_change_of_the_code_is_one_thin_layer() -> None:
    layers = [step for name in ("runtime", "server") for step in BY_NAME[name].of("RUN", "COPY")]
    assert layers == ["--from=product /opt/predictors /opt/predictors"]
    assert "compileall -q --invalidation-mode unchecked-hash" in BY_NAME["product"].of("RUN")[-1]
    steps = [rest for kind, rest in BY_NAME["product"].steps if kind in ("RUN", "COPY")]
    download = next(index for index, step in enumerate(steps) if "--require-hashes" in step)
    assert steps.index("predictors predictors") > download, "the slow step is first"


def test_a_label_is_never_that_of_a_former_revision() -> None:
    # buildah tells labels apart by their text, arguments not put in; only a new layer beneath helps
    assert 'echo "${REVISION}" >/opt/predictors/REVISION' in BY_NAME["product"].of("RUN")[-1]
    assert BY_NAME["runtime"].steps[0][0] == "COPY"


def test_secrets_are_mounted_for_a_step_and_never_passed_as_arguments() -> None:
    for stage in STAGES:
        names = [step.partition("=")[0].lower() for step in stage.of("ARG")]
        assert not [name for name in names if re.search("token|password|secret|index", name)]
        for step in stage.of("RUN"):
            assert "required" not in step  # a build that needs none is told none
            # buildah removes what it mounts over, from the image too
            assert not re.search(r"type=secret,[^ ]*target=", step)
            if "pip install" in step and "--no-index" not in step:
                assert "--mount=type=secret,id=pip --mount=type=secret,id=ca" in step


def test_the_build_is_sent_exactly_what_it_copies() -> None:
    copied = {source for stage in STAGES for source in stage.sources}
    sent = files_sent()
    for source in copied:
        assert [path for path in sent if path == source or path.startswith(f"{source}/")], source
    stray = [
        path
        for path in sent
        if not any(path == source or path.startswith(f"{source}/") for source in copied)
    ]
    assert stray == []


@pytest.mark.parametrize(
    "path",
    [
        ".git/config", ".venv/bin/python", "out/log.txt", "tests/conftest.py", "pip.conf",
        "predictors/__pycache__/base.cpython-311.pyc", "checkpoints/training/loop.py",
    ],
)  # fmt: skip
def test_the_build_is_not_sent(path: str) -> None:
    assert not is_sent(path, IGNORED)


@pytest.mark.parametrize(
    "path",
    ["Dockerfile", *(f"tests/e2e/image/{of}/Dockerfile" for of in ("broken", "faulty", "storage"))],
)
def test_hadolint_has_nothing_to_say(path: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    assert hadolint.exists(), "hadolint comes with the extra `deploy`: make setup"
    command = [str(hadolint), "--config", str(ROOT / ".hadolint.yaml"), str(ROOT / path)]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
