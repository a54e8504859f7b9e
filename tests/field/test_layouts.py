"""Folders as people have them on disk: variants of the weights, a hub's cache, and what lies near a
checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from predictors import __main__ as root
from predictors.cli.named_values import named_paths
from predictors.cli.other_models import instead_of
from predictors.compute.checkpoint.folder import check_entries
from predictors.compute.checkpoint.headers import read_headers, weight_files
from predictors.compute.checkpoint.layout import (
    advice,
    announce_weights,
    check_adapters,
    resolve_folder,
    resolve_snapshot,
)
from predictors.compute.checkpoint.shards import Shards
from predictors.diffusion.request import ImageParameters
from predictors.errors import EngineFailed, InvalidRequest
from predictors.models.flux.model import FluxModel
from predictors.models.qwen2_5_vl.model import Qwen25VLModel
from predictors.settings import ComputeSettings, FluxSettings, Settings
from tests.chat.room import Room
from tests.diffusion.driver import open_driver
from tests.fakes import PATIENCE_S
from tests.variants import (
    FLUX,
    QWEN,
    Change,
    variant,
    write,
)

PLAIN = "diffusion_pytorch_model.safetensors"
IMAGE = ImageParameters("a large red circle", num_inference_steps=2, seed=3)


# -- variants of the weights -----------------------------------------------------------------------
def component(folder: Path, *files: str, **indices: tuple[str, ...]) -> Path:
    """A folder with these safetensors files, and indices (`/` for a dot) that name some of them."""
    folder.mkdir()
    for at, file in enumerate(files):
        save_file({f"t{at}": torch.full((1,), float(at))}, folder / file)
    for name, listed in indices.items():
        mapping = {f"t{files.index(file)}": file for file in listed}
        (folder / name.replace("/", ".")).write_text(json.dumps({"weight_map": mapping}))
    return folder


SHARDS = tuple(f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2))
OLD_SHARDS = tuple(f"diffusion_pytorch_model-0000{i}-of-00002.fp16.safetensors" for i in (1, 2))
MODEL_SHARDS = tuple(f"model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2))
NEW_INDEX = "diffusion_pytorch_model/safetensors/index/fp16/json"
OLD_INDEX = "diffusion_pytorch_model/safetensors/fp16/index/json"
CHOSEN: dict[str, tuple[tuple[str, ...], dict[str, Any], str, tuple[str, ...]]] = {
    "plain": ((PLAIN,), {}, "", (PLAIN,)),
    "the only variant": (("model.fp16.safetensors",), {}, "", ("model.fp16.safetensors",)),
    "bf16 is one, too": (("model.bf16.safetensors",), {}, "", ("model.bf16.safetensors",)),
    "plain beside a variant": ((PLAIN, f"{PLAIN[:-11]}fp16.safetensors"), {}, "", (PLAIN,)),
    "a wanted one": (
        (PLAIN, "diffusion_pytorch_model.fp16.safetensors"),
        {},
        "fp16",
        ("diffusion_pytorch_model.fp16.safetensors",),
    ),
    "a wanted one of two": (
        ("model.fp16.safetensors", "model.bf16.safetensors"),
        {},
        "bf16",
        ("model.bf16.safetensors",),
    ),
    "a wanted one that is not there": (
        (PLAIN, "diffusion_pytorch_model.bf16.safetensors"),
        {},
        "fp16",
        (PLAIN,),
    ),
    "shards": (SHARDS, {NEW_INDEX: SHARDS}, "", SHARDS),
    "shards of diffusers' older releases": (OLD_SHARDS, {OLD_INDEX: OLD_SHARDS}, "", OLD_SHARDS),
    "transformers' shards": (
        MODEL_SHARDS,
        {"model/safetensors/index/fp16/json": MODEL_SHARDS},
        "fp16",
        MODEL_SHARDS,
    ),
    "wanted shards beside a plain file": (
        (PLAIN, *SHARDS),
        {NEW_INDEX: SHARDS},
        "fp16",
        SHARDS,
    ),
    "an index of the single file": (
        (PLAIN,),
        {"diffusion_pytorch_model/safetensors/index/json": (PLAIN,)},
        "",
        (PLAIN,),
    ),
}


@pytest.mark.parametrize(("files", "indices", "wanted", "taken"), CHOSEN.values(), ids=CHOSEN)
def test_the_files_of_a_variant_are_found_and_no_other_is_read(
    tmp_path: Path,
    files: tuple[str, ...],
    indices: dict[str, tuple[str, ...]],
    wanted: str,
    taken: tuple[str, ...],
) -> None:
    folder = component(tmp_path / "vae", *files, **indices)
    assert [file.name for file in weight_files(folder, wanted)] == sorted(taken)
    with Shards(folder, wanted) as shards:
        assert set(shards) == {f"t{files.index(file)}" for file in taken}


SETTING = "PREDICTORS_COMPUTE_WEIGHTS_VARIANT"
AMBIGUOUS: dict[str, tuple[tuple[str, ...], dict[str, Any], str, str]] = {
    "two variants": (
        ("model.fp16.safetensors", "model.bf16.safetensors"),
        {},
        "",
        "vae has model.bf16.safetensors and model.fp16.safetensors, but no plain weights: set "
        f"{SETTING} to bf16 or fp16",
    ),
    "neither the wanted nor a plain one": (
        ("model.bf16.safetensors",),
        {},
        "fp16",
        f"not the wanted variant 'fp16': set {SETTING} to bf16",
    ),
    "an index and another file": (
        ("model.safetensors", "a.safetensors"),
        {"model/safetensors/index/json": ("a.safetensors",)},
        "",
        "has model.safetensors and model.safetensors.index.json, of which only one can be meant",
    ),
    "two libraries' names": (
        ("model.safetensors", PLAIN),
        {},
        "",
        f"has {PLAIN} and model.safetensors, of which only one can be meant",
    ),
    "shards without an index": (SHARDS, {}, "", f"has {SHARDS[0]}, but no index of the shards"),
    "another name": (("flux1-dev.safetensors",), {}, "", "'flux1-dev.safetensors', which is not"),
}


@pytest.mark.parametrize(("files", "indices", "wanted", "said"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_files_of_which_none_is_clearly_meant_are_refused_by_their_names(
    tmp_path: Path,
    files: tuple[str, ...],
    indices: dict[str, tuple[str, ...]],
    wanted: str,
    said: str,
) -> None:
    folder = component(tmp_path / "vae", *files, **indices)
    with pytest.raises(EngineFailed) as failure:
        weight_files(folder, wanted)
    assert said in failure.value.message


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pytorch_model.bin", "'pytorch_model.bin': pickled weights are not read"),
        ("model.ckpt", "'model.ckpt': pickled weights are not read"),
        ("model-q4.gguf", "'model-q4.gguf': GGUF is not read"),
        ("flax_model.msgpack", "weights of another framework"),
        ("README.md", "no safetensors weights; no other is read; fetch the checkpoint again"),
    ],
)
def test_weights_in_another_format_are_named(tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(EngineFailed) as failure:
        weight_files(tmp_path)
    assert said in failure.value.message


@pytest.mark.parametrize("name", ["config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_a_pointer_of_git_lfs_is_named_with_what_fetches_the_file(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / name).write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 167335342\n"
    )
    with pytest.raises(EngineFailed, match="is a pointer of Git LFS") as failure:
        check_entries(tmp_path)
    assert failure.value.message.startswith(name)
    assert "`git lfs pull`" in failure.value.message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model_index.json", "give the folder of the checkpoint, with its model_index.json or"),
        ("flux1-dev.safetensors", "`predictors convert FILE TARGET --base FOLDER`"),
        ("flux1-dev-Q4_K_S.gguf", "GGUF is not read"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_refused_with_what_to_give(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InvalidRequest) as refused:
        resolve_folder(tmp_path / name, "--model flux")
    assert refused.value.message.startswith(f"--model flux: {name} is a file, not a folder; ")
    assert said in refused.value.message


def test_a_link_to_a_file_that_was_not_fetched_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    with pytest.raises(EngineFailed, match=r"model\.safetensors as a link to a file that is not"):
        weight_files(tmp_path)


def test_the_variant_that_is_read_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = component(tmp_path / "vae", "model.fp16.safetensors")
    with caplog.at_level(logging.INFO):
        announce_weights("flux, vae", folder, "")
        announce_weights("flux, vae", component(tmp_path / "plain", PLAIN), "")
        announce_weights("flux, vae", tmp_path / "plain", "fp16")
        announce_weights("q", component(tmp_path / "q", "model.safetensors", "a.safetensors"), "")
    assert [record.getMessage() for record in caplog.records] == [
        "flux, vae: the weights are read from the files of the variant fp16",
        "flux, vae: there is no variant fp16, the plain weights files are read",
        "q: not read: a.safetensors",
    ]


def as_variant(*files: str) -> Change:
    """Weights in float16 under the variant's name, the plain ones zeroed beside the first."""

    def change(folder: Path) -> None:
        for file in files:
            path = folder / file
            tensors = load_file(path)
            path.unlink()
            narrow = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
            save_file(narrow, path.with_suffix(".fp16.safetensors"))

    return change


ALL_FILES = (
    f"transformer/{PLAIN}", f"vae/{PLAIN}", "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
)  # fmt: skip


def test_a_folder_with_variants_only_draws_what_its_values_say(tmp_path: Path) -> None:
    def widened(folder: Path) -> None:
        for file in ALL_FILES:
            tensors = load_file(folder / file)
            (folder / file).unlink()
            halves = {n: t.half().float() for n, t in tensors.items()}
            save_file(halves, folder / file)

    halves = variant(FLUX, tmp_path / "fp16", as_variant(*ALL_FILES))
    plain = variant(FLUX, tmp_path / "plain", widened)
    drawn = open_driver(halves).draw(IMAGE)
    assert np.array_equal(drawn, open_driver(plain).draw(IMAGE))


def test_the_setting_reaches_every_part_of_both_families(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def beside(*files: str) -> Change:
        def change(folder: Path) -> None:
            for file in files:
                shutil.copy(folder / file, (folder / file).with_suffix(".fp16.safetensors"))
                write(file, b"not read")(folder)

        return change

    compute = ComputeSettings(device="cpu", weights_variant="fp16")
    small = FluxSettings(sizes="64x64", default_size="64x64", slots=1, max_sequence_length=16)
    settings = Settings(compute=compute, flux=small)
    flux = variant(FLUX, tmp_path / "flux", beside(*ALL_FILES))
    qwen = variant(QWEN, tmp_path / "qwen", beside("model.safetensors"))
    with caplog.at_level(logging.INFO):
        for name, folder in (("flux", flux), ("qwen", qwen)):
            model = root.build(name, folder, settings)
            model.stop()
    read = [r.getMessage() for r in caplog.records if "variant fp16" in r.getMessage()]
    assert len(read) == 5
    FluxModel(flux, variant="fp16")
    model = Qwen25VLModel(qwen, "fp16")
    Room.open(qwen, slots=1, make_model=lambda _: model)
    with pytest.raises(EngineFailed, match="is broken"):
        Room.open(qwen, slots=1)


def test_diffusers_and_transformers_write_what_is_read(tmp_path: Path) -> None:
    """Their own `save_pretrained(variant=...)`, sharded and not."""
    transformer = FluxTransformer2DModel.from_pretrained(FLUX / "transformer")
    t5 = T5EncoderModel.from_pretrained(FLUX / "text_encoder_2", dtype=torch.float32)
    for at, size in enumerate(("50GB", "1MB")):
        for name, model in (("transformer", transformer), ("t5", t5)):
            folder = tmp_path / f"{name}{at}"
            model.save_pretrained(folder, variant="fp16", max_shard_size=size)
            found = weight_files(folder)
            assert (len(found) > 1) == (size == "1MB")
            assert all(".fp16" in file.name for file in found)


# -- a hub's cache ---------------------------------------------------------------------------------
def hub_cache(folder: Path, source: Path, *revisions: str, main: str = "") -> Path:
    """`models--org--name` as the hub's client lays it out: snapshots are links to blobs."""
    (folder / "blobs").mkdir(parents=True)
    for revision in revisions:
        shutil.copytree(source, folder / "snapshots" / revision, copy_function=os.symlink)
    if main:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main)
    return folder


def test_a_hubs_cache_is_the_snapshot_of_its_main_revision_or_the_only_one(tmp_path: Path) -> None:
    two = hub_cache(tmp_path / "models--a--two", QWEN, "abc", "def", main="def\n")
    assert resolve_snapshot(two) == two / "snapshots" / "def"
    one = hub_cache(tmp_path / "models--a--one", FLUX, "abc")
    assert resolve_folder(one, "--model x") == one / "snapshots" / "abc"
    assert resolve_snapshot(FLUX) == FLUX
    model = root.build("q", resolve_snapshot(two), Settings(compute=ComputeSettings(device="cpu")))
    model.stop()


@pytest.mark.parametrize(
    ("revisions", "main", "said"),
    [
        (("abc", "def"), "", "2 snapshots: give one of abc, def in snapshots"),
        (("abc", "def"), "123", "names the snapshot '123', which is not there; it has abc, def"),
        (("abc",), "123", "names the snapshot '123', which is not there; it has abc"),
        (("abc",), "../../x", "names the snapshot '../../x', which is not there"),
    ],
)
def test_a_hubs_cache_of_which_no_snapshot_is_meant_is_refused(
    tmp_path: Path, revisions: tuple[str, ...], main: str, said: str
) -> None:
    folder = hub_cache(tmp_path / "models--a--b", QWEN, *revisions, main=main)
    with pytest.raises(InvalidRequest) as failure:
        resolve_snapshot(folder)
    assert "models--a--b is a hub's cache" in failure.value.message
    assert said in failure.value.message


# -- advice for folders that are no checkpoint -----------------------------------------------------
def file_of(*names: str) -> Change:
    def change(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        save_file({name: torch.zeros(1) for name in names}, folder / "weights.safetensors")

    return change


def copied(source: Path) -> Change:
    return lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True)


NEAR: dict[str, tuple[Change, str]] = {
    "a transformer": (copied(FLUX / "transformer"), "--component transformer=PATH"),
    "a T5": (copied(FLUX / "text_encoder_2"), "--component text_encoder_2=PATH"),
    "a CLIP": (copied(FLUX / "text_encoder"), "--component text_encoder=PATH"),
    "a vae": (copied(FLUX / "vae"), "--component vae=PATH"),
    "a LoRA by its tensors": (
        file_of("transformer.a.lora_A.weight", "transformer.a.lora_B.weight"), "holds an adapter",
    ),
    "ComfyUI's LoRA": (file_of("lora_unet_a.lora_down.weight", "lora_unet_a.alpha"), "an adapter"),
    "one file": (file_of("img_in.weight"), "predictors convert FILE TARGET --base FOLDER"),
    "GGUF": (write("model.gguf", "GGUF"), "GGUF is not read"),
    "a folder of caches": (
        lambda folder: (folder / "models--black-forest--flux").mkdir(),
        "give one of 'models--black-forest--flux' in it",
    ),
    "no model_index.json": (
        lambda folder: (folder / "transformer").mkdir(), "model_index.json is missing",
    ),
    "one folder too high": (
        lambda folder: shutil.copytree(QWEN, folder / "qwen", copy_function=os.symlink),
        "a checkpoint may be the folder 'qwen' in it",
    ),
    "architectures of another form": (write("config.json", '{"architectures": 3}'), ""),
    "nothing": (lambda _: None, ""),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), NEAR.values(), ids=NEAR)
def test_a_folder_near_a_checkpoint_is_named_with_what_to_give(
    tmp_path: Path, change: Change, said: str
) -> None:
    (tmp_path / "e").mkdir()
    change(tmp_path / "e")
    found = advice(tmp_path / "e")
    assert said in found
    assert bool(said) == bool(found)
    with pytest.raises(InvalidRequest):
        root.served_architecture(tmp_path / "e")


@pytest.mark.parametrize("kind", root.MODEL_TYPES)
def test_a_config_without_a_class_is_known_by_its_model_type(tmp_path: Path, kind: str) -> None:
    write("config.json", json.dumps({"model_type": kind}))(tmp_path)
    assert root.served_architecture(tmp_path) == root.MODEL_TYPES[kind]
    write("config.json", json.dumps({"model_type": kind, "architectures": ["Mine"]}))(tmp_path)
    with pytest.raises(InvalidRequest, match="is a Mine"):
        root.served_architecture(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FluxControlPipeline", "control pictures are not offered: take FLUX.1-dev"),
        ("FluxControlNetInpaintPipeline", "control pictures are not offered"),
        ("Flux2Pipeline", "FLUX.2 is another architecture"),
        ("QwenImageEditPipeline", "Qwen-VL reads pictures and draws none"),
        ("Qwen2VLForConditionalGeneration", "take a Qwen2.5-VL of its size"),
        ("Qwen2_5_VLForSequenceClassification", "no head that writes text"),
    ],
)
def test_a_class_that_is_known_and_not_served_has_what_to_take_instead(
    tmp_path: Path, name: str, said: str
) -> None:
    write("config.json", json.dumps({"architectures": [name]}))(tmp_path)
    with pytest.raises(InvalidRequest, match=f"is a {name}; .*{said}.*; served are"):
        root.served_architecture(tmp_path)


def test_no_class_that_is_served_has_something_to_take_instead() -> None:
    assert not any(map(instead_of, root.MODELS))


def test_an_adapter_beside_the_weights_is_found_by_its_tensors(tmp_path: Path) -> None:
    """Whatever it is called: it would not be applied."""
    folder = variant(FLUX / "transformer", tmp_path / "transformer")
    save_file({"style.weight": torch.zeros(1)}, folder / "style.safetensors")
    check_adapters(folder, "transformer")  # no adapter
    file_of("a.lora_A.weight", "a.lora_B.weight")(folder)
    with pytest.raises(
        EngineFailed, match=r"transformer holds an adapter \(weights\.safetensors\)"
    ):
        check_adapters(folder, "transformer")


def test_a_file_instead_of_a_folder_is_named(tmp_path: Path) -> None:
    file_of("img_in.weight")(tmp_path)
    with pytest.raises(InvalidRequest, match=r"weights\.safetensors is a file.*predictors convert"):
        resolve_folder(tmp_path / "weights.safetensors", "--model flux")


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        *((verb, [flag]) for verb in ("serve", "warm", "profile") for flag in ("m=no", "m=tests")),
        *((verb, ["m=checkpoints/shapes-flux"] * 2) for verb in ("serve", "warm")),
    ],
)
def test_what_cant_be_a_model_is_refused_before_torch_is_imported(
    verb: str, flags: list[str]
) -> None:
    code = (
        "import sys; from predictors.__main__ import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'diffusers', 'kserve'} & set(sys.modules);"
        "sys.exit(code)"
    )
    options = [f"--model={flag}" for flag in flags]
    ended = subprocess.run(
        [sys.executable, "-c", code, verb, *options, "--log-format=text"],
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="--model a is given twice"):
        named_paths([f"a={FLUX}", f"a={QWEN}"])


def test_a_tensor_in_two_shards_is_refused_with_both_files(tmp_path: Path) -> None:
    """The later one would win, whichever the index names."""
    folder = tmp_path / "vae"
    folder.mkdir()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for at, name in enumerate(names):
        save_file({"w": torch.full((2,), float(at)), f"only{at}": torch.ones(1)}, folder / name)
    index = {"weight_map": {"w": names[0], "only0": names[0], "only1": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EngineFailed) as failure:
        read_headers(folder)
    assert f"the tensor 'w' in {names[0]} and in {names[1]}" in failure.value.message
