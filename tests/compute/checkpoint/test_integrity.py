"""A folder's files against `model.sha256` and a hub's records: what differs, is missing or was
added is refused by name, by `check` and by every start."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.__main__ import main
from predictors.compute.checkpoint.integrity import (
    HUB_RECORDS,
    MANIFEST,
    VerifiedFolder,
    find_manifest,
    verify_folders,
)
from predictors.errors import EngineFailed
from predictors.settings import ComputeSettings
from tests.fakes import PATIENCE_S
from tests.variants import FLUX, QWEN, Change, config, variant, without, write

PAGE = Path(__file__).parents[3] / "docs" / "checkpoints.md"
LISTED = re.compile(r"[0-9a-f]{64}  \./(.+)")
WEIGHTS = {
    f"{source.name}: {file.relative_to(source)}": (source, str(file.relative_to(source)))
    for source in (FLUX, QWEN)
    for file in sorted(source.rglob("*.safetensors"))
}
TOKENIZER = "tokenizer/vocab.json"


def listed(source: Path, target: Path, *changes: Change) -> Path:
    """A copy with the manifest that the documented line writes, and then these changes."""
    folder = variant(source, target)
    [command] = re.findall(r"^\$ (\(cd FOLDER .*?model\.sha256\))$", PAGE.read_text(), re.M | re.S)
    command = command.replace("FOLDER", str(folder))
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, timeout=PATIENCE_S)
    for change in changes:
        change(folder)
    return folder


def flipped(file: str, bit: int = 3) -> Change:
    """One bit in the middle of a file."""

    def change(folder: Path) -> None:
        raw = bytearray((folder / file).read_bytes())
        raw[len(raw) // 2] ^= 1 << bit
        write(file, bytes(raw))(folder)

    return change


def verified(folder: Path, verify: str = "auto", **more: str) -> list[VerifiedFolder]:
    return verify_folders([(folder, {})], ComputeSettings(verify=verify, **more))


def said(folder: Path, verify: str = "auto") -> str:
    """The message of the refusal, which tells no place on this machine."""
    with pytest.raises(EngineFailed) as refused:
        verified(folder, verify)
    message = refused.value.message
    assert str(folder) not in message
    assert message.isascii()
    return message


# -- what is found ---------------------------------------------------------------------------------
@pytest.mark.parametrize("source", [FLUX, QWEN], ids=lambda path: path.name)
def test_an_intact_folder_is_as_its_manifest_says(tmp_path: Path, source: Path) -> None:
    folder = listed(source, tmp_path / "c")
    names = LISTED.findall((folder / MANIFEST).read_text())
    [found] = verified(folder, "on")
    assert (found.source, found.num_files) == (MANIFEST, len(names))
    assert found.num_bytes == sum((folder / name).stat().st_size for name in names)
    assert {f"./{n}" for n in names} >= {
        f"./{file.relative_to(folder)}" for file in folder.rglob("*.safetensors")
    }


@pytest.mark.parametrize(("source", "file"), WEIGHTS.values(), ids=WEIGHTS)
def test_a_bit_in_the_middle_of_a_weights_file_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: Path, file: str
) -> None:
    folder = listed(source, tmp_path / "c", flipped(file))
    message = said(folder)
    now = hashlib.sha256((folder / file).read_bytes()).hexdigest()[:12]
    then = hashlib.sha256((source / file).read_bytes()).hexdigest()[:12]
    assert message.startswith(f"{file} is damaged or another file: its digest begins with {now}, ")
    assert f"{MANIFEST} says {then};" in message
    assert main(["check", str(folder)]) == 2
    assert f"reason: {message}" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["scheduler/scheduler_config.json", TOKENIZER, "model_index.json"])
def test_a_config_or_tokenizer_that_differs_is_found(tmp_path: Path, file: str) -> None:
    def change(folder: Path) -> None:
        write(file, (folder / file).read_bytes() + b"\n")(folder)

    assert said(listed(FLUX, tmp_path / "c", change)).startswith(f"{file} is damaged or another")


ADDED = {
    "a file of weights": (
        QWEN,
        write("model.fp16.safetensors", (QWEN / "model.safetensors").read_bytes()),
        "fp16",
        "model.fp16.safetensors is not listed in model.sha256",
    ),
    "a template": (QWEN, write("chat_template.jinja", "{{ 1 }}"), "", "chat_template.jinja is not"),
    "an added token": (FLUX, write("tokenizer_2/added_tokens.json", "{}"), "", "tokenizer_2/added"),
}


@pytest.mark.parametrize(("source", "change", "wanted", "begins"), ADDED.values(), ids=ADDED)
def test_a_file_that_is_read_and_not_listed_is_refused(
    tmp_path: Path, source: Path, change: Change, wanted: str, begins: str
) -> None:
    folder = listed(source, tmp_path / "c", change)
    with pytest.raises(EngineFailed) as refused:
        verified(folder, weights_variant=wanted)
    assert refused.value.message.startswith(begins)
    assert "take it out of the folder, or write a new model.sha256" in refused.value.message


def test_weights_that_are_not_read_need_no_line(tmp_path: Path) -> None:
    other = write("flux1-dev.safetensors", b"one file beside its parts")
    assert verified(listed(FLUX, tmp_path / "c", other, write("README.md", "changed")))


def test_a_listed_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    folder = listed(QWEN, tmp_path / "c", without("generation_config.json"))
    assert said(folder).startswith("generation_config.json is missing, which model.sha256 lists")


def test_a_manifest_of_weights_alone_leaves_configs_to_the_operator(tmp_path: Path) -> None:
    digest = hashlib.sha256((QWEN / "model.safetensors").read_bytes()).hexdigest()
    line = f"{digest.upper()} *model.safetensors\r\n\n"
    change = config("generation_config.json", temperature=0.5)
    folder = variant(QWEN, tmp_path / "c", write(MANIFEST, line), change)
    assert verified(folder)[0].num_files == 1
    flipped("model.safetensors")(folder)
    assert said(folder).startswith("model.safetensors is damaged")


BAD_LINES = {
    "no digest": "model.safetensors\n",
    "a short digest": f"{'a' * 63}  model.safetensors\n",
    "a way out of the folder": f"{'a' * 64}  ../model.safetensors\n",
    "a place on the machine": f"{'a' * 64}  /etc/passwd\n",
    "no name": f"{'a' * 64}  \n",
}


@pytest.mark.parametrize("text", BAD_LINES.values(), ids=BAD_LINES)
def test_a_line_that_sha256sum_does_not_write_is_refused(tmp_path: Path, text: str) -> None:
    message = said(variant(QWEN, tmp_path / "c", write(MANIFEST, text)))
    assert message.startswith("line 1 of model.sha256 is ")


def test_an_empty_a_huge_and_a_contradicting_manifest_are_refused(tmp_path: Path) -> None:
    folder = variant(QWEN, tmp_path / "c", write(MANIFEST, "\n"))
    assert said(folder) == "model.sha256 lists no file; write it again"
    write(MANIFEST, b"\n" * (2**20 + 1))(folder)
    assert said(folder) == "model.sha256 has more than 1048576 bytes"
    write(MANIFEST, f"{'a' * 64}  config.json\n{'b' * 64}  config.json\n")(folder)
    assert "lists 'config.json' twice" in said(folder)


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from("abc"))
def test_any_flipped_bit_of_any_listed_file_is_found(
    tmp_path_factory: pytest.TempPathFactory, at: float, bit: int, name: str
) -> None:
    folder = tmp_path_factory.mktemp("small")
    lines = []
    for each in "abc":
        raw = hashlib.sha256(each.encode()).digest() * (ord(each) - 96)
        (folder / f"{each}.json").write_bytes(raw)
        lines.append(f"{hashlib.sha256(raw).hexdigest()}  {each}.json\n")
    (folder / MANIFEST).write_text("".join(lines))
    assert verified(folder)[0].num_files == 3
    raw = bytearray((folder / f"{name}.json").read_bytes())
    raw[int(at * len(raw))] ^= 1 << bit
    (folder / f"{name}.json").write_bytes(raw)
    assert said(folder).startswith(f"{name}.json is damaged")


# -- the setting -----------------------------------------------------------------------------------
def test_on_refuses_a_folder_without_digests_and_off_looks_at_none(tmp_path: Path) -> None:
    plain = variant(QWEN, tmp_path / "plain")
    assert verified(plain) == []
    assert "PREDICTORS_COMPUTE_VERIFY is on: write one with sha256sum" in said(plain, "on")
    damaged = listed(QWEN, tmp_path / "c", flipped("model.safetensors"), write("new.json", "{}"))
    assert verified(damaged, "off") == []


def test_a_damaged_file_ends_a_start_before_a_model_is_made(tmp_path: Path) -> None:
    folder = listed(QWEN, tmp_path / "c", flipped("model.safetensors"))
    flags = ["--port=0", "--grpc-port=-1", "--log-format=text"]
    ended = subprocess.run(
        [sys.executable, "-m", "predictors", "serve", f"--model=m={folder}", *flags],
        env=os.environ | {"PREDICTORS_COMPUTE_DEVICE": "cpu"},
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: model.safetensors is damaged or another file")
    assert ended.stderr.count("\n") == 1


def test_check_shows_what_was_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = listed(QWEN, tmp_path / "c")
    assert main(["check", str(folder), "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["verified"]
    assert (found["folder"], found["source"]) == ("c", MANIFEST)
    assert main(["check", str(folder)]) == 0
    assert f"verified: {found['files']} files (3.8 MiB) of c are as" in capsys.readouterr().out


# -- parts -----------------------------------------------------------------------------------------
def test_a_part_from_elsewhere_is_compared_with_the_list_of_its_pipeline(tmp_path: Path) -> None:
    base = listed(FLUX, tmp_path / "base", flipped("vae/diffusion_pytorch_model.safetensors"))
    other = listed(FLUX, tmp_path / "other")
    parts = {"vae": other / "vae"}
    own, part = verify_folders([(base, parts)], ComputeSettings(verify="on"))
    assert (own.folder, part.folder) == ("base", "vae")  # the damaged part is not read
    flipped("vae/diffusion_pytorch_model.safetensors")(other)
    with pytest.raises(EngineFailed, match=r"^diffusion_pytorch_model\.safetensors is damaged"):
        verify_folders([(base, parts)], ComputeSettings())


def test_digests_of_a_folder_are_none_of_its_copies(tmp_path: Path) -> None:
    folder = listed(FLUX, tmp_path / "c", write(f"{HUB_RECORDS.parts[0]}/x", "record"))
    assert main(["quantize", str(folder), str(tmp_path / "fp8")]) == 0
    assert find_manifest(tmp_path / "fp8") is None
    assert not (tmp_path / "fp8" / HUB_RECORDS.parts[0]).exists()


# -- a hub's records -------------------------------------------------------------------------------
def blob_name(raw: bytes) -> str:
    """git's name, by which a hub knows a small file."""
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


def etag(file: Path) -> str:
    raw = file.read_bytes()
    is_large = file.suffix == ".safetensors"
    return hashlib.sha256(raw).hexdigest() if is_large else blob_name(raw)


def downloaded(source: Path, folder: Path) -> Path:
    """As `hf download --local-dir` leaves a folder."""
    variant(source, folder)
    for file in [f for f in sorted(folder.rglob("*")) if f.is_file()]:
        record = folder / HUB_RECORDS / f"{file.relative_to(folder)}.metadata"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(f"{'c' * 40}\n{etag(file)}\n1764400000.0\n")
    return folder


def cached(source: Path, folder: Path) -> Path:
    """As a hub's cache keeps a snapshot."""
    snapshot = folder / "models--org--m" / "snapshots" / ("c" * 40)
    blobs = folder / "models--org--m" / "blobs"
    blobs.mkdir(parents=True)
    for file in [f for f in sorted(source.rglob("*")) if f.is_file()]:
        place = snapshot / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blobs / etag(file))
        place.symlink_to(os.path.relpath(blobs / etag(file), place.parent))
    return snapshot


HUBS = {"the hub's records": downloaded, "the hub's cache": cached}


@pytest.mark.parametrize("source", [FLUX, QWEN], ids=lambda path: path.name)
@pytest.mark.parametrize("kind", HUBS)
def test_a_hubs_digests_are_compared(tmp_path: Path, kind: str, source: Path) -> None:
    make: Callable[[Path, Path], Path] = HUBS[kind]
    folder = make(source, tmp_path / "c")
    [found] = verified(folder, "on")
    assert found.source == kind
    large = sorted(folder.rglob("*.safetensors"))[-1]
    small = sorted(folder.rglob("tokenizer_config.json"))[-1]
    assert "is damaged" in said_after(folder, large, lambda raw: raw[:-1] + b"\x7f")
    assert "is damaged" in said_after(folder, small, lambda raw: raw + b" ")
    (folder / large.parent / "special_tokens.json").write_text("{}")
    assert f"is not listed in {kind}" in said(folder, "on")
    assert verified(folder) == []  # hashing is for those who ask for it


def said_after(folder: Path, file: Path, change: Callable[[bytes], bytes]) -> str:
    """The refusal while the file that a link leads to is changed."""
    place, raw = file.resolve(), file.read_bytes()
    if file.is_symlink() and not place.is_relative_to(folder.parents[1]):
        file.unlink()  # a link to the embedded checkpoint is replaced, never written through
        place = file
    place.write_bytes(change(raw))
    try:
        return said(folder, "on")
    finally:
        place.write_bytes(raw)


def test_a_manifest_of_ones_own_goes_before_the_hubs(tmp_path: Path) -> None:
    folder = downloaded(QWEN, tmp_path / "c")
    config("generation_config.json", temperature=0.5)(folder)
    assert said(folder, "on").startswith("generation_config.json is damaged or another file")
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for end in ("json", "txt", "safetensors")
        for file in sorted(folder.glob(f"*.{end}"))
    ]
    write(MANIFEST, "".join(lines))(folder)
    assert verified(folder, "on")[0].source == MANIFEST


@pytest.mark.parametrize("record", ["", "one line", f"{'c' * 40}\nW/odd\n1.0\n"])
def test_records_without_digests_are_not_used(tmp_path: Path, record: str) -> None:
    folder = variant(QWEN, tmp_path / "c", write("README.md", "x"))
    place = folder / HUB_RECORDS
    place.mkdir(parents=True)
    (place / "config.json.metadata").write_text(record)
    assert verified(folder) == []
