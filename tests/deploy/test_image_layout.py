"""Which changes rebuild which layers, and which blobs a containerd is sent; without a builder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.e2e.image import recipe
from tests.e2e.image.containerd import Containerd, checked_images, nameless
from tests.e2e.image.layout import FULL_NAME, REF, Layout
from tests.e2e.image.places import ROOT, CannotBuild, check_free_disk

SERVER = "localhost/product:e2e"


def put(layout: Layout, content: bytes) -> str:
    """Lay a blob down; gives its digest."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    path = layout.blob(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return digest


def put_image(layout: Layout, reference: str, *layers: bytes) -> str:
    """Lay an image down as `buildah push oci:` does: the former one of its name loses it."""
    descriptors = [{"digest": put(layout, layer), "size": len(layer)} for layer in layers]
    config = {"digest": put(layout, f"config {reference} {layers!r}".encode())}
    manifest = json.dumps({"config": config, "layers": descriptors}).encode()
    digest = put(layout, manifest)
    index = layout.folder / "index.json"
    there = json.loads(index.read_text())["manifests"] if index.exists() else []
    for former in there:
        if former.get("annotations", {}).get(REF) == reference:
            former["annotations"] = {}
    new = {"digest": digest, "size": len(manifest), "annotations": {REF: reference}}
    index.write_text(json.dumps({"schemaVersion": 2, "manifests": [*there, new]}))
    return digest


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An image of wheels and product."""
    made = Layout(tmp_path / "oci")
    put_image(made, SERVER, b"wheels" * 1000, b"product")
    return made


def names_in(stream: bytes) -> set[str]:
    """The names of the files in an archive."""
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        return set(tar.getnames())


def test_a_layout_that_is_not_there_has_no_images(tmp_path: Path) -> None:
    assert Layout(tmp_path / "none").images() == []


def test_a_stream_holds_only_what_the_other_side_lacks(layout: Layout) -> None:
    (image,) = layout.images()
    wheels, product = (digest for digest, _ in image.layers)
    out = io.BytesIO()
    layout.write_archive([image], {wheels}, out)
    names = names_in(out.getvalue())
    assert f"blobs/sha256/{product[7:]}" in names
    assert f"blobs/sha256/{image.config[7:]}" in names
    assert f"blobs/sha256/{wheels[7:]}" not in names
    assert {"oci-layout", "index.json"} < names


def test_a_stream_names_its_images_in_full(layout: Layout) -> None:
    out = io.BytesIO()
    layout.write_archive(layout.images(), set(), out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        (described,) = json.loads(index.read())["manifests"]
    assert described["annotations"] == {FULL_NAME: SERVER, REF: "e2e"}


def test_a_layer_that_two_images_share_is_sent_once(layout: Layout) -> None:
    put_image(layout, "localhost/product:faulty", b"wheels" * 1000, b"product", b"fault")
    images = layout.images()
    out = io.BytesIO()
    layout.write_archive(images, set(), out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        names = tar.getnames()
    assert len(names) == len(set(names)) == 2 + 3 + 2 * 2  # layers, configs and manifests
    assert sum(layout.missing(images, set()).values()) < len(out.getvalue())


def test_pruning_drops_a_former_product_and_keeps_the_wheels(layout: Layout) -> None:
    (former,) = layout.images()
    digest = put_image(layout, SERVER, b"wheels" * 1000, b"product, changed")
    assert layout.prune() > 0
    (image,) = layout.images()
    assert image.digest == digest
    assert all(layout.blob(blob).exists() for blob in image.blobs)
    assert not layout.blob(former.layers[1][0]).exists()
    assert layout.prune() == 0


def test_a_blob_that_containerd_has_too_takes_the_disk_once(layout: Layout, tmp_path: Path) -> None:
    (image,) = layout.images()
    wheels, _ = image.layers[0]
    store = Layout(tmp_path / "content")
    assert not layout.lend(wheels, store), "no containerd has its files there"
    store.folder.mkdir()  # containerd makes the folders within it when it first needs them
    assert layout.lend(wheels, store)
    assert store.blob(wheels).samefile(layout.blob(wheels))
    assert layout.lend(wheels, store), "it is lent already"
    layout.blob(wheels).unlink()
    assert store.blob(wheels).read_bytes() == b"wheels" * 1000


def test_another_file_of_containerd_is_left_alone(layout: Layout, tmp_path: Path) -> None:
    (image,) = layout.images()
    wheels, _ = image.layers[0]
    store = Layout(tmp_path / "content")
    store.blob(wheels).parent.mkdir(parents=True)
    store.blob(wheels).write_bytes(b"an earlier copy")
    assert not layout.lend(wheels, store)
    assert store.blob(wheels).read_bytes() == b"an earlier copy"


def test_a_large_layer_is_made_known_by_itself_before_the_stream_of_an_import(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = tmp_path / "called"
    ctr = tmp_path / "bin" / "ctr"
    ctr.parent.mkdir()
    # says nothing of what it has, like an empty containerd, and writes down what it is told
    ctr.write_text(f'#!/bin/sh\nshift 4\necho "$*" >>{called}\ncat >/dev/null\n')
    ctr.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ctr.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("VISION_PREDICTORS_CACHE", str(tmp_path))
    monkeypatch.setattr("tests.e2e.image.containerd.LARGE_BYTES", 1000)
    store = Layout(tmp_path / "root/io.containerd.content.v1.content")
    store.folder.mkdir(parents=True)
    (image,) = layout.images()
    wheels, size = image.layers[0]

    assert Containerd("socket", "k8s.io", tmp_path / "root").import_missing(layout) == [SERVER]
    told = called.read_text().splitlines()
    assert [line for line in told if wheels in line or line.startswith("images import")] == [
        f"content ingest --expected-size {size} --expected-digest {wheels} layer-{wheels}",
        "images import -",
    ]
    assert store.blob(wheels).samefile(layout.blob(wheels))


def test_an_image_whose_unpacking_was_cut_off_is_told_apart() -> None:
    table = (
        "REF           TYPE   DIGEST       STATUS         SIZE            UNPACKED \n"
        "localhost/a:1 a/b+c  sha256:whole complete (2/2) 1.4 MiB/1.4 MiB true\n"
        "localhost/b:1 a/b+c  sha256:half  complete (7/7) 5.7 GiB/5.7 GiB false\n"
    )
    assert checked_images(table) == [
        ("localhost/a:1", "sha256:whole", True),
        ("localhost/b:1", "sha256:half", False),
    ]


def test_an_id_keeps_no_image_that_lost_its_name() -> None:
    images = {
        "localhost/product:e2e": "sha256:new", "localhost/pause:e2e": "sha256:pause",
        "sha256:1": "sha256:old", "sha256:2": "sha256:new", "sha256:3": "sha256:pause",
    }  # fmt: skip
    assert nameless(images) == ["sha256:1"]
    assert set(nameless(images, {"localhost/product:e2e"})) == {"sha256:1", "sha256:2"}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the files that the hash of the wheels is made of, to be changed."""
    for name in ("Dockerfile", "constraints.txt", "hashes.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_fresh_clone_has_the_same_wheels(clone: Path) -> None:
    assert recipe.wheels_key(clone) == recipe.wheels_key()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("constraints.txt", "torch==", "torch==0+"),
        ("hashes.txt", "sha256:0", "sha256:f"),
        ("pyproject.toml", '"torch>=', '"torch>=0.'),
        ("pyproject.toml", '"fa3-fwd>=', '"fa3-fwd>0.'),
        ("Dockerfile", "--compile-bytecode", ""),
        ("Dockerfile", "libgomp1", "libgomp2"),
    ],
)
def test_the_wheels_are_rebuilt_after_a_change_of(
    clone: Path, file: str, old: str, new: str
) -> None:
    change(clone / file, old, new)
    assert recipe.wheels_key(clone) != recipe.wheels_key()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pyproject.toml", "line-length = 100", "line-length = 99"),
        ("pyproject.toml", '"pytest>=', '"pytest>=0.'),
        ("Dockerfile", '"tini", "-g"', '"tini"'),
        ("Dockerfile", "# Slow layers come first", "# Slow layers"),
    ],
)
def test_the_wheels_stay_after_a_change_of(clone: Path, file: str, old: str, new: str) -> None:
    change(clone / file, old, new)
    assert recipe.wheels_key(clone) == recipe.wheels_key()


def test_a_disk_that_is_too_small_is_said_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VISION_PREDICTORS_CACHE", str(tmp_path))
    with pytest.raises(CannotBuild, match=r"a build needs 1000000000 GB in .* GB are free"):
        check_free_disk(1e9, "a build")
    check_free_disk(0, "nothing")
    assert "nothing needs 0 GB" in capsys.readouterr().out


def test_the_faulty_image_hangs_an_engine_while_its_file_is_there(tmp_path: Path) -> None:
    program = """
import sys, threading, time, types
from pathlib import Path
import sitecustomize
from predictors.serving.loop import EngineLoop
sitecustomize.HANG = Path(sys.argv[1])
steps = []
engine = types.SimpleNamespace(step=steps.append, slots=1, spare_slots=0)
jobs = types.SimpleNamespace(wake=lambda: None)
EngineLoop("model", engine, jobs, None, None, time.monotonic)
engine.step([1])
sitecustomize.HANG.touch()
thread = threading.Thread(target=engine.step, args=([2],))
thread.start()
thread.join(0.2)
print(steps, thread.is_alive())
sitecustomize.HANG.unlink()
thread.join(40)
print(steps, thread.is_alive())
"""
    folder = ROOT / "tests" / "e2e" / "image" / "faulty"
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "hang")],
        env={"PYTHONPATH": f"{folder}:{ROOT}"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert said.stdout.splitlines() == ["[[1]] True", "[[1], [2]] False"], said.stderr
