"""`predictors check`: a folder is described without torch, and a start refuses what it refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors import __main__ as root
from predictors.compute.checkpoint.summary import CardFacts
from predictors.errors import ServingError
from predictors.models.flux.model import FluxModel
from predictors.models.qwen2_5_vl.model import make_predictor
from predictors.settings import ComputeSettings, FluxSettings, QwenVLSettings, Settings
from tests.fakes import PATIENCE_S
from tests.field import card_table
from tests.full_size import QWEN_7B, flux_dev_folder, qwen_folder, write_sparse
from tests.variants import FLUX, QWEN, variant, without

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "diffusers")


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLUX.1-dev at full size, without values."""
    return flux_dev_folder(tmp_path_factory.mktemp("full") / "flux-dev")


@pytest.fixture(scope="module")
def qwen_7b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_folder(tmp_path_factory.mktemp("full") / "qwen-7b", QWEN_7B)


def run(arguments: Sequence[str | Path], **more: str) -> subprocess.CompletedProcess[str]:
    """A process of its own that fails if it has imported a heavy library by its end."""
    program = (
        "import sys; from predictors.__main__ import main; code = main(sys.argv[1:])\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not found, found\n"
        "raise SystemExit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, timeout=PATIENCE_S, env={**os.environ, **more},
    )  # fmt: skip


def report_of(folder: Path, *flags: str, code: int = 0) -> dict[str, Any]:
    ended = run(["check", folder, "--json", *flags], PATH="")  # no nvidia-smi
    assert ended.returncode == code, ended.stdout + ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def measured_peak() -> int:
    """Bytes that torch held at most, with all tiers loaded, on an H200."""
    rows = json.loads((REPOSITORY / "benchmarks/results/flux.json").read_text())["rows"]
    return max(row["peak_bytes"] for row in rows if row["engine"].startswith("here"))


def measured_rows() -> list[dict[str, Any]]:
    """Of FLUX.1-dev's sizes on an H200, by the tiers that were loaded."""
    raw = (REPOSITORY / "benchmarks/results/flux_memory.json").read_text()
    found: list[dict[str, Any]] = json.loads(raw)["rows"]
    return found


# -- folders of full size --------------------------------------------------------------------------
def test_a_folder_of_34_gb_is_described_without_torch(dev: Path) -> None:
    report = report_of(dev)
    assert sum(part["stored_bytes"] for part in report["parts"]) > 33e9
    assert report["served"]
    parts = {part["name"]: part for part in report["parts"]}
    assert parts["transformer"]["parameters"] == 11_901_408_320
    assert parts["text_encoder_2"]["stored_values"] == {"BF16": 4_762_310_656}
    (chosen,) = [option for option in report["options"] if option["chosen"]]
    assert chosen["name"] == "lossless, high, turbo"
    assert chosen["fits"] is None
    # benchmarks/results/flux.json: 45.81e9 at the peak, without the CUDA context
    assert chosen["needed_bytes"] - chosen["bytes"]["CUDA context"] == pytest.approx(
        45.81e9, rel=0.01
    )


@pytest.mark.parametrize(
    ("memory", "code", "fitting"),
    [
        ("80GB", 0, 4),
        ("48GB", 0, 4),
        ("40GB", 3, 3),
        ("24GB", 3, 1),
        ("16GB", 3, 0),
    ],
)
def test_memory_is_judged_per_tier(dev: Path, memory: str, code: int, fitting: int) -> None:
    report = report_of(dev, "--memory", memory, code=code)
    assert sum(option["fits"] for option in report["options"]) == fitting
    for option in report["options"]:
        assert (option["short_bytes"] > 0) == (not option["fits"])
        helps = "PREDICTORS_FLUX_TIERS" if fitting else "no tier fits"
        assert (helps in option["advice"]) == (not option["fits"])


def test_a_qwen_7b_is_described_with_its_pages(qwen_7b: Path) -> None:
    report = report_of(qwen_7b, "--memory=80GB")
    assert [part["parameters"] for part in report["parts"]] == [7_615_616_512, 676_550_144]
    (chosen,) = [option for option in report["options"] if option["chosen"]]
    assert chosen["detail"]["kv_bytes_per_token"] == 57_344
    assert chosen["detail"]["kv_tokens"] > 500_000
    assert chosen["detail"]["kv_pages"] == chosen["detail"]["kv_tokens"] // 64


def test_a_card_that_is_too_small_is_exit_code_3_and_names_a_setting(qwen_7b: Path) -> None:
    report = report_of(qwen_7b, "--memory=24GB", code=3)
    chosen, narrow = report["options"]
    assert chosen["advice"].startswith("set PREDICTORS_QWEN_VL_KV_TOKENS=")
    assert narrow["fits"]
    tokens = chosen["advice"].partition("=")[2]
    ended = run(["check", qwen_7b, "--memory=24GB"], PREDICTORS_QWEN_VL_KV_TOKENS=tokens)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("flag", ["24", "GiB", "-3GiB", "24 apples", "1e9GiB", ""])
def test_a_size_that_is_none_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.main(["check", str(FLUX), f"--memory={flag}"]) == 2
    assert "--memory takes a size such as 24GiB" in capsys.readouterr().err


# -- the start uses it -----------------------------------------------------------------------------
@pytest.mark.parametrize("verb", ["serve", "warm", "profile"])
def test_a_start_refuses_without_torch_and_with_the_same_message(verb: str, tmp_path: Path) -> None:
    folder = variant(FLUX, tmp_path / "c", without("vae/config.json"))
    ended = run([verb, f"--model=m={folder}", "--log-format=text"])
    report = report_of(folder, code=2)
    assert ended.returncode == 2
    assert report["reason"] == "vae/config.json is missing; fetch the checkpoint again"
    assert report["reason"] in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("verb", ["serve", "warm", "profile", "check"])
def test_a_wrong_path_is_said_without_torch(verb: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    ended = run([verb, gone if verb == "check" else f"--model=m={gone}"])
    assert ended.returncode == 2
    assert "there is no folder" in ended.stderr


# -- broken folders --------------------------------------------------------------------------------
def described(folder: Path) -> str:
    """The message of the refusal, or empty. Any other exception is a traceback to a user."""
    try:
        root.describe_folder(folder, Settings(), CardFacts(80 * 2**30, has_fp8=True))
    except ServingError as error:
        message = error.message
    else:
        return ""
    assert "\n" not in message
    assert str(folder) not in message
    return message


def replaced_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """The file taken away, and something else in its place."""

    def change(file: Path) -> None:
        file.unlink()
        make(file)

    return change


def nested_json(file: Path) -> None:
    file.write_text("[" * 200_000)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: file.unlink(),
    "empty": replaced_by(lambda file: file.write_bytes(b"")),
    "cut short": lambda file: replaced_by(partial(_write, raw=file.read_bytes()[:-20]))(file),
    "not UTF-8": replaced_by(lambda file: file.write_bytes(b"\xff\xfe{\x00")),
    "a bare number": replaced_by(lambda file: file.write_text("1e400")),
    "a list": replaced_by(lambda file: file.write_text("[]")),
    "an empty object": replaced_by(lambda file: file.write_text("{}")),
    "nested without end": replaced_by(nested_json),
    "a header of 2**60 bytes": replaced_by(lambda f: f.write_bytes((2**60).to_bytes(8, "little"))),
    "a folder": replaced_by(lambda file: file.mkdir()),
    "a link that leads nowhere": replaced_by(lambda file: file.symlink_to("nowhere")),
    "a link to itself": replaced_by(lambda file: file.symlink_to(file.name)),
    "a pipe": replaced_by(lambda file: os.mkfifo(file)),
    "endless": replaced_by(lambda file: file.symlink_to("/dev/zero")),
}


def _write(file: Path, raw: bytes) -> None:
    file.write_bytes(raw)


FILES = [(FLUX, file) for file in (
    "model_index.json", "scheduler/scheduler_config.json", "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors", "text_encoder/config.json",
    "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "tokenizer_2/tokenizer.json",
    "text_encoder_2/model.safetensors", "vae/config.json",
)] + [(QWEN, file) for file in (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "generation_config.json", "preprocessor_config.json", "chat_template.json",
)]  # fmt: skip
NOT_NEEDED = {
    "generation_config.json",
    "preprocessor_config.json",
    "chat_template.json",
    "scheduler/scheduler_config.json",  # an empty one: all defaults
    "tokenizer/tokenizer.json",  # there are vocab.json and merges.txt
    "tokenizer_config.json",
}
HARMLESS = {
    "missing", "an empty object", "a folder", "a link that leads nowhere", "a link to itself",
}  # fmt: skip
"""Damages after which a file that is not needed may be taken for missing."""


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("source", "file"), FILES, ids=[file for _, file in FILES])
def test_a_damaged_file_is_a_sentence_and_never_waited_for(
    source: Path, file: str, damage: str, tmp_path: Path
) -> None:
    folder = variant(source, tmp_path / "c", lambda folder: DAMAGES[damage](folder / file))
    message = described(folder)
    assert message or (file in NOT_NEEDED and damage in HARMLESS)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
CONFIGS = [
    (source, file) for source, file in FILES if file.endswith(".json") and "izer.json" not in file
]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """A folder per checkpoint, whose files are rewritten again and again."""
    place = tmp_path_factory.mktemp("copies")
    return {source: variant(source, place / source.name) for source in (FLUX, QWEN)}


@hypothesis.settings(max_examples=30)
@given(st.sampled_from(CONFIGS), st.data())
def test_a_config_with_a_value_of_any_type_is_a_sentence(
    copies: dict[Path, Path], chosen: tuple[Path, str], data: st.DataObject
) -> None:
    source, file = chosen
    config = json.loads((source / file).read_text())
    level = config
    key = data.draw(st.sampled_from(sorted(level)))
    while isinstance(level[key], dict) and level[key] and data.draw(st.booleans()):
        level = level[key]
        key = data.draw(st.sampled_from(sorted(level)))
    level[key] = data.draw(VALUES)
    target = copies[source] / file
    target.unlink()
    target.write_text(json.dumps(config))
    try:
        described(copies[source])
    finally:
        target.unlink()
        target.symlink_to(source / file)


@hypothesis.settings(max_examples=30)
@given(st.binary(max_size=300), st.booleans())
def test_weights_of_any_bytes_are_a_sentence(
    copies: dict[Path, Path], raw: bytes, is_framed: bool
) -> None:
    target = copies[QWEN] / "model.safetensors"
    target.unlink()
    target.write_bytes(len(raw).to_bytes(8, "little") + raw if is_framed else raw)
    try:
        assert described(copies[QWEN])
    finally:
        target.unlink()
        target.symlink_to(QWEN / "model.safetensors")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json", "vae"])
def test_a_file_without_permission_is_a_sentence(file: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FLUX, tmp_path / "c"))
    (folder / file).chmod(0)
    for place in (folder, *folder.parents):
        if place != Path("/tmp"):
            place.chmod(0o755)
        if place.parent == Path("/tmp"):
            break
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            os.write(writer, described(folder).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as told:
        message = told.read()
    assert "Permission denied" in message or "can't be read" in message or "is missing" in message


def test_a_folder_of_another_kind_is_described_as_far_as_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    write_sparse(tmp_path / "lora/weights.safetensors", {"a.lora_A.weight": ("BF16", (4, 8))})
    report = report_of(tmp_path, code=2)
    assert (report["served"], report["architecture"]) == (False, "")
    assert report["parts"] == [
        {
            "name": "lora", "class": "", "parameters": 0, "stored_bytes": 64,
            "stored_values": {"BF16": 32}, "quantisation": "",
        }
    ]  # fmt: skip


# -- served folders are served ---------------------------------------------------------------------
def test_what_check_calls_served_is_not_refused_by_the_start(tmp_path: Path) -> None:
    """The damages of `DAMAGES` that `check` takes for a file that is not needed."""
    for file in sorted(NOT_NEEDED):
        source = FLUX if "/" in file else QWEN
        name = "an empty object" if file.startswith("scheduler") else "missing"
        folder = variant(source, tmp_path / str(len(list(tmp_path.iterdir()))))
        DAMAGES[name](folder / file)
        assert described(folder) == "", file
        if source is FLUX:
            FluxModel(folder)
        else:
            make_predictor("q", folder, SMALL).stop()


SMALL = Settings(
    compute=ComputeSettings(device="cpu"), qwen_vl=QwenVLSettings(slots=1, max_context=128)
)


# -- docs/your-own-models.md -----------------------------------------------------------------------
PAGE = (REPOSITORY / "docs/your-own-models.md").read_text()


def test_the_pages_example_is_what_the_command_prints() -> None:
    (block,) = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    command, _, printed = block.partition("\n")
    assert command.startswith("$ .venv/bin/predictors check ")
    ended = run(shlex.split(command)[2:])
    assert ended.stdout == printed


def test_the_pages_table_of_cards_is_computed() -> None:
    assert "\n".join(card_table.table()) in PAGE


def test_the_page_names_every_key_of_the_report() -> None:
    report = report_of(QWEN, "--memory=24GiB")
    keys = set(report) | set(report["card"])
    for each in (*report["parts"], *report["options"]):
        keys |= set(each)
    keys |= set(report["options"][0]["detail"])
    section = PAGE.split("## Keys of `--json`")[1]
    assert keys == {name for name in re.findall(r"`([a-z0-9_]+)`", section) if name in keys}


@pytest.mark.parametrize("row", measured_rows(), ids=lambda row: str(row["asked"]))
def test_the_arithmetic_is_what_was_measured_on_a_card(row: dict[str, Any]) -> None:
    """The peak of all tiers gave the work; these were measured afterwards."""
    asked = row["asked"]
    settings = FluxSettings(
        tiers=asked["tiers"], conditioning_precision=asked["conditioning_precision"]
    )
    options = card_table.flux_options(CardFacts(), settings)
    (chosen,) = [option for option in options if option.is_chosen]
    assert chosen.total_bytes / 2**30 == pytest.approx(row["device_used_gib"], rel=0.02)
