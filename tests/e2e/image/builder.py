"""Builds the images with buildah, without a container engine and without a registry.

Base (Debian by mmdebstrap) and wheels are kept by the hash of what they depend on, see `recipe`;
the product is a layer on them, rebuilt whenever its files changed. All that is to be imported ends
in the OCI layout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.image import places, recipe
from tests.e2e.image.layout import Layout
from tests.e2e.image.tools import ask, install, run

BASE = "localhost/vision-predictors-base"
WHEELS = "localhost/vision-predictors-wheels"
HERE = Path(__file__).resolve().parent
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

# measured: 6 GB of wheels, once in the container that installs them and once in its layer, and the
# layout's copy, which a cluster shares; then a cluster's, unpacked
WHEELS_GB = 19.0
PRODUCT_GB = 1.0

UNWANTED = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")


def build() -> None:
    """Have all images in the layout. Raises `CannotBuild`."""
    if os.geteuid() != 0:
        raise places.CannotBuild("a build without a container engine needs root: run it by sudo -E")
    install("buildah", "mmdebstrap", "debian-archive-keyring")
    wheels = f"{WHEELS}:{recipe.wheels_key()}"
    places.check_free_disk(PRODUCT_GB if exists(wheels) else WHEELS_GB, "a build of the e2e images")
    clean_up()  # after a build that was killed
    base = build_base()
    if not exists(wheels):
        forget(WHEELS)
        forget(places.SERVER.rpartition(":")[0])
        run(_buildah("rmi", "--prune"), quiet=True)  # what was built on the former wheels
        build_stage(base, "wheels", wheels)
    build_stage(base, "server", places.SERVER)
    build_variant("faulty", places.FAULTY)
    build_variant("broken", places.BROKEN)
    build_storage(base)
    layout = Layout(places.layout())
    for reference in (wheels, places.STORAGE):
        lay_down(reference, layout)
    for reference in (places.SERVER, places.FAULTY, places.BROKEN, places.STORAGE):
        push(reference)
    clean_up()
    freed = layout.prune()
    print(f"{freed / 1e6:,.0f} MB of former images were removed from {places.layout()}", flush=True)


def clean_up() -> None:
    """Remove the containers in which buildah ran the instructions; it keeps the last one."""
    if leftovers := buildah_says("containers", "--quiet").split():
        run(_buildah("rm", *leftovers), quiet=True)


def build_base() -> str:
    """The Debian that all is built on; made when its package list changed."""
    base = f"{BASE}:{recipe.base_key()}"
    if exists(base):
        return base
    forget(BASE)
    with tempfile.TemporaryDirectory(dir=places.cache(), prefix="base-") as folder:
        without = [f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED]
        licences = "--dpkgopt=path-include=/usr/share/doc/*/copyright"
        wanted = f"--include={','.join(recipe.BASE_PACKAGES)}"
        target = f"{folder}/base.tar"
        debian = ["mmdebstrap", "--variant=essential", wanted, *without, licences]
        run([*debian, recipe.SUITE, target], quiet=True)
        Path(folder, "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        run(_buildah("build", *ISOLATED, "-q", "-t", base, folder), quiet=True)
    return base


def build_stage(base: str, stage: str, reference: str) -> None:
    """Build one stage of the Dockerfile on `base`; whatever has not changed is taken as it is."""
    with _secrets() as secrets:
        arguments = [f"BASE_IMAGE={base}", f"REVISION={revision()}"]
        given = [word for pair in arguments for word in ("--build-arg", pair)]
        given += [*_uv_cache(), *secrets]
        source = ["--target", stage, "-t", reference, str(places.ROOT)]
        run(_buildah("build", "--layers", *ISOLATED, *given, *source), quiet=True)


def revision() -> str:
    """The commit that the image is built from, with `-dirty` when files differ from it."""
    described = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(described, cwd=places.ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def build_variant(name: str, reference: str) -> None:
    """Build an image of the tests on the product's, from the folder beside this file."""
    source = ["--build-arg", f"IMAGE={places.SERVER}", "-t", reference, str(HERE / name)]
    run(_buildah("build", "--layers", *ISOLATED, *source), quiet=True)


def build_storage(base: str) -> None:
    """Build the object store and KServe's storage initializer, on the product's Debian."""
    with _secrets() as secrets:
        source = ["--build-arg", f"BASE={base}", "-t", places.STORAGE, str(HERE / "storage")]
        run(_buildah("build", "--layers", *ISOLATED, *secrets, *source), quiet=True)


def lay_down(reference: str, layout: Layout) -> None:
    """Put the layers of an image into the layout as they are, before anything is pushed there.

    `buildah push` compresses layers for a layout, and does so each time (a minute for the
    wheels), unless the very bytes are there already. A folder (`dir:`) gets them as they are.
    """
    shown = json.loads(buildah_says("inspect", "--type", "image", reference))
    layers = shown["OCIv1"]["rootfs"]["diff_ids"]
    missing = [digest for digest in layers if not layout.blob(digest).exists()]
    if not missing:
        return
    layout.blob(missing[0]).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=places.cache(), prefix="layers-") as folder:
        to = f"dir:{folder}"
        run(_buildah("push", "-q", "--disable-compression", reference, to), quiet=True)
        for digest in missing:
            Path(folder, digest.partition(":")[2]).replace(layout.blob(digest))


def push(reference: str) -> None:
    """Copy an image into the layout; blobs that are there already are not written again."""
    run(_buildah("push", "-q", reference, f"oci:{places.layout()}:{reference}"), quiet=True)


def exists(reference: str) -> bool:
    """True if buildah has this image."""
    command = _buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", reference)
    return subprocess.run(command, capture_output=True).returncode == 0


def forget(repository: str) -> None:
    """Remove all of a repository's images, so that the disk has room for the next one."""
    images = json.loads(buildah_says("images", "--json") or "[]")
    names = [name for image in images or [] for name in image.get("names") or []]
    for name in names:
        if name.rpartition(":")[0] == repository:
            run(_buildah("rmi", "--force", name), quiet=True)


# `--isolation chroot` needs no container runtime; the host's network reaches the package registries
ISOLATED = ("--isolation", "chroot", "--network", "host", "--pull-never")


def _buildah(verb: str, *arguments: str) -> list[str]:
    # overlay: vfs copies the whole image for each instruction, 6 GB a time
    store = ["--root", str(places.storage()), "--runroot", "/run/vision-predictors-buildah"]
    return ["buildah", *store, "--storage-driver", "overlay", verb, *arguments]


def command_in(container: str, *words: str, volumes: Sequence[str] = ()) -> list[str]:
    """The command that runs `words` in a container, as the image's user on the host's network.
    `volumes` are what buildah takes as such."""
    mounted = [option for volume in volumes for option in ("--volume", volume)]
    isolated = ("--isolation", "chroot", "--network", "host")
    return _buildah("run", *isolated, *mounted, container, "--", *words)


def buildah_says(verb: str, *arguments: str) -> str:
    """The output of one buildah command, on the images of the suite. Raises `CannotBuild`."""
    return ask(_buildah(verb, *arguments))


def _uv_cache() -> list[str]:
    """The wheels that `make setup` downloaded need not be downloaded again."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        return []
    folder = ask([str(uv), "cache", "dir"]).strip()
    if not Path(folder).is_dir():
        return []
    return ["--volume", f"{folder}:/run/uv-cache", "--build-arg", "UV_CACHE_DIR=/run/uv-cache"]


@contextmanager
def _secrets() -> Iterator[list[str]]:
    """The settings by which the host's pip reaches its registry, as build secrets: in no layer."""
    keys = ("index-url", "extra-index-url", "trusted-host", "proxy")
    said = ask([sys.executable, "-m", "pip", "config", "list"]).splitlines()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "pip.conf")
        config.touch(mode=0o600)
        lines = ["[global]"]
        for key, _, value in (line.partition("=") for line in said):
            if key.rpartition(".")[2] in keys:
                lines.append(f"{key.rpartition('.')[2]} = {value[1:-1]}")
        config.write_text("\n".join(lines) + "\n")
        bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or CA_BUNDLE
        secrets = ["--secret", f"id=pip,src={config}"]
        if Path(bundle).is_file():
            secrets += ["--secret", f"id=ca,src={bundle}"]
        yield secrets
