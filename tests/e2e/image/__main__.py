"""`python -m tests.e2e.image build | import | save | list`: the images of the e2e suite. Only the
command line is here.

`build` needs root and Debian's packages, and leaves an OCI layout in the machine's cache; `import`
brings it into a running containerd; neither needs a registry of images.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.e2e.image import builder, places
from tests.e2e.image.containerd import Containerd
from tests.e2e.image.layout import Layout

NOTHING_BUILT = "no image was built: python -m tests.e2e.image build"


def main() -> int:
    """Run one verb; returns the exit code."""
    arguments = _parser().parse_args()
    started = time.monotonic()
    try:
        arguments.run(arguments)
    except places.CannotBuild as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    print(f"{arguments.verb}: {time.monotonic() - started:.1f} s", flush=True)
    return 0


def build(_arguments: argparse.Namespace) -> None:
    """Build the product's image and those that the tests break it with, into the layout."""
    builder.build()


def bring(arguments: argparse.Namespace) -> None:
    """Import what the containerd lacks of the images that `build` left."""
    layout = Layout(places.layout())
    if not layout.images():
        raise places.CannotBuild(NOTHING_BUILT)
    root = arguments.root or places.cache() / "containerd"
    new = Containerd(arguments.containerd, arguments.namespace, root).import_missing(layout)
    print(f"new: {', '.join(new) or 'nothing'}", flush=True)


def save(arguments: argparse.Namespace) -> None:
    """Write the product's image, whole, as one OCI archive, for a registry behind an air gap."""
    layout = Layout(places.layout())
    product = [image for image in layout.images() if image.reference == places.SERVER]
    if not product:
        raise places.CannotBuild(NOTHING_BUILT)
    size_gb = sum(layout.missing(product, set()).values()) / places.GIGABYTE
    places.check_free_disk(size_gb, "the archive", arguments.archive.absolute().parent)
    with arguments.archive.open("wb") as out:
        layout.write_archive(product, set(), out)


def show(_arguments: argparse.Namespace) -> None:
    """Say what the layout holds."""
    for image in Layout(places.layout()).images():
        sizes = " + ".join(f"{size / 1e6:,.1f}" for _, size in image.layers)
        print(f"{image.reference} {image.digest[:19]} layers of {sizes} MB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.image", description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb")
    verbs.add_parser("build", help=build.__doc__).set_defaults(run=build)
    verb = verbs.add_parser("import", help=bring.__doc__)
    verb.add_argument("--containerd", required=True, metavar="SOCKET", help="where it listens")
    verb.add_argument("--namespace", default="k8s.io", help="default: k8s.io, the kubelet's")
    verb.add_argument("--root", type=Path, help="its folder (default: the e2e cluster's)")
    verb.set_defaults(run=bring)
    verb = verbs.add_parser("save", help=save.__doc__)
    verb.add_argument("archive", type=Path, metavar="FILE.tar")
    verb.set_defaults(run=save)
    verbs.add_parser("list", help=show.__doc__).set_defaults(run=show)
    return parser


if __name__ == "__main__":
    sys.exit(main())
