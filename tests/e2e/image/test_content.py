"""The content of the image that was built: its file tree, and its programs, run as the user that it
names; no cluster is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.image import builder, places
from tests.e2e.image.layout import Layout

INSTALLED = "/opt/predictors/vision_predictors-*.dist-info"
# as Triton asks
PRINT_HEADERS = 'import sysconfig as s; print(s.get_paths("posix_prefix")["include"])'

# both kinds of linears of a decode step of 3B and what comes before the first, for a card of 132
# multiprocessors
COMPILE = """
from predictors.compute.kernels.hopper_linear import Epilogue, code_for, weighted_code_for
from predictors.compute.kernels.hopper_tiling import Room, stream_tiles, tile_for
room = Room(132, 30)
_, tiles = stream_tiles(2048, room)
for width, features, parts in ((2048, 11008, 1), (11008, 2048, 2)):
    tile = tile_for(64, width, features, parts, room)
    print(code_for(tile, Epilogue(tiles, is_added=parts == 1))[:4])
print(weighted_code_for(2048, room)[:4])
"""

Inside = Callable[[str], str]
"""Runs a shell line in the image; gives what it printed."""


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    """A container of the server's image, gone afterwards."""
    if not builder.exists(places.SERVER):
        pytest.fail("the image is not there: python -m tests.e2e.image build (as root)")
    made = builder.buildah_says("from", "--pull-never", places.SERVER).strip()
    yield made
    builder.buildah_says("rm", made)


@pytest.fixture(scope="module")
def inside(container: str) -> Inside:
    """Runs a line as the image's user."""

    def run(line: str) -> str:
        return builder.buildah_says(
            "run", "--isolation", "chroot", container, "--", "sh", "-c", line
        )

    return run


@pytest.fixture(scope="module")
def tree(container: str) -> Path:
    """The image's root folder."""
    return Path(builder.buildah_says("mount", container).strip())


def test_the_server_holds_no_weights(tree: Path) -> None:
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(tree)
        for name in names
        if name.endswith((".safetensors", ".gguf", ".ckpt"))
    ]
    assert found == []


def test_nothing_of_the_build_machine_is_left(tree: Path) -> None:
    assert not (tree / "etc" / "pip.conf").exists()
    assert not any((tree / "run" / "secrets").glob("*"))
    assert not any((tree / "run").glob("uv-cache/*"))
    assert not any((tree / "root").rglob("*.conf"))
    bundle = (tree / "etc/ssl/certs/ca-certificates.crt").read_bytes()
    assert bundle.count(b"BEGIN CERTIFICATE") > 100, "Debian's own certificates"


def test_it_runs_as_a_user_who_may_write_to_the_cache_only(inside: Inside) -> None:
    assert inside("id -u; id -g; whoami").split() == ["10001", "10001", "predictors"]
    writable = inside(
        "find / -xdev -path /proc -prune -o -path /sys -prune -o -path /dev -prune"
        " -o -path /run -prune -o -type d -writable -print 2>/dev/null || true"
    )
    assert set(writable.split()) <= {"/tmp", "/var/tmp", "/var/cache/predictors", "/run/lock"}
    assert "/var/cache/predictors" in writable


def test_the_product_is_complete_and_compiled(inside: Inside, tree: Path) -> None:
    # `--version` imports no torch; a start of the server is the cluster's tests
    assert inside("python -m predictors --version").strip().startswith("vision-predictors ")
    product = tree / "opt" / "predictors" / "predictors"
    shipped = list(product.rglob("*.py"))
    assert len(shipped) == int(inside(f"cd {INSTALLED} && grep -c '[.]py,' RECORD"))
    for source in shipped:
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")), source


def test_writes_to_many_sockets_are_compiled(inside: Inside) -> None:
    said = inside(
        "python -c 'import socket; from predictors.protocol.http.socket_writes import send_each;"
        ' a, b = socket.socketpair(); print(send_each(((a.fileno(), b"1234"),)), b.recv(9))\''
    )
    assert said.strip() == "[4] b'1234'"


def test_torch_and_its_libraries_are_imported(inside: Inside) -> None:
    said = inside(
        "python -c 'import torch, json; print(json.dumps([torch.__version__,"
        " torch.version.cuda, float(torch.ones(2).sum())]))'"
    )
    version, cuda, total = json.loads(said.splitlines()[-1])
    assert f"torch=={version.partition('+')[0]}" in (places.ROOT / "constraints.txt").read_text()
    assert cuda
    assert total == 2.0


def test_triton_has_a_compiler_and_pythons_headers(inside: Inside) -> None:
    said = inside(
        "cd /tmp && printf '#include <Python.h>\\nint one(void) { return 1; }\\n' >one.c"
        " && gcc -shared -fPIC -o one.so one.c"
        f" -I$(python -c '{PRINT_HEADERS}')"
        " && python -c 'import ctypes; print(ctypes.CDLL(\"/tmp/one.so\").one())'"
    )
    assert said.strip() == "1"


def test_the_images_share_all_layers_but_thin_ones() -> None:
    images = {image.reference: image for image in Layout(places.layout()).images()}
    layers = [images[name].layers for name in (places.SERVER, places.FAULTY, places.BROKEN)]
    common = set(layers[0]) & set(layers[1]) & set(layers[2])
    assert sum(size for _, size in common) > 1e9
    assert all(size < 10e6 for image in layers for digest, size in set(image) - common)
    # the product: what changes with the code
    assert images[places.SERVER].layers[-1][1] < 10e6


def test_it_has_the_packages_of_sbom_txt_and_no_other(inside: Inside) -> None:
    ours = "vision-predictors"
    said = inside(
        "python -c 'import importlib.metadata as m;"
        ' print(*(f"{d.name.lower()}=={d.version}" for d in m.distributions()), sep="\\n")\''
    )
    listed = sorted(line for line in said.split() if not line.startswith(ours))
    assert listed == (places.ROOT / "sbom.txt").read_text().splitlines()


def test_nvrtc_compiles_the_kernels_of_a_decode_step_without_a_card(inside: Inside) -> None:
    printed = inside(f"python -c '{COMPILE}'")
    assert printed.splitlines() == [repr(b"\x7fELF")] * 3
