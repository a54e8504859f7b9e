"""Brings the layout's images into a containerd, and only what it lacks of them.

A blob that the content store has is neither sent nor unpacked again: after the first import, which
brings the wheels, a new product takes a second. Large blobs are hard links in both places.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.image.layout import Image, Layout
from tests.e2e.image.places import GIGABYTE, CannotBuild, check_free_disk
from tests.e2e.image.tools import ask

HELD = "localhost/held-during-import"
"""The second name of an image while others are imported."""

WHEELS_BYTES = 10**9
"""Missing layers of more than this have wheels in them: the product is a megabyte."""

LARGE_BYTES = 50_000_000
"""Larger blobs are not sent in the stream of an import, but each by itself."""


class Containerd:
    """One namespace of the containerd that listens at `socket` and keeps its files in `root`."""

    def __init__(self, socket: str, namespace: str, root: Path) -> None:
        self._ctr = ["ctr", "--address", socket, "--namespace", namespace]
        self._store = Layout(root / "io.containerd.content.v1.content")

    def images(self) -> dict[str, str]:
        """Digest of each image's manifest by reference."""
        return {reference: digest for reference, digest, _ in self._checked()}

    def _checked(self) -> list[tuple[str, str, bool]]:
        return checked_images(ask([*self._ctr, "images", "check"]))

    def blobs(self) -> set[str]:
        """Digests of what the content store has."""
        return set(ask([*self._ctr, "content", "ls", "--quiet"]).split())

    def import_missing(self, layout: Layout) -> list[str]:
        """Have every image of `layout`; references of those that it had not, or had otherwise.

        Raises `CannotBuild` with containerd's words when it refuses them.
        """
        # an import that was cut off leaves names that no pod can start from
        half = {reference for reference, _, unpacked in self._checked() if not unpacked}
        self._remove([image.reference for image in layout.images() if image.reference in half])
        there = self.images()
        new = [image for image in layout.images() if there.get(image.reference) != image.digest]
        if new:
            self._make_room(layout, new, there)
            with self._held(self.images()):
                self._import(layout, new)
            self._remove(nameless(self.images()))
        return [image.reference for image in new]

    def _make_room(self, layout: Layout, new: Sequence[Image], there: Mapping[str, str]) -> None:
        """Before other wheels come, let go of the ones that they replace: 12 GB."""
        if sum(layout.missing(new, self.blobs()).values()) < WHEELS_BYTES:
            return
        replaced = {image.reference for image in new} & set(there)
        self._remove([*replaced, *nameless(there, replaced)])

    @contextmanager
    def _held(self, images: Mapping[str, str]) -> Iterator[None]:
        """Keep `images` under second names. Once the first of them is replaced, containerd may
        collect its layers, on which the image that is being unpacked builds."""
        try:
            for number, name in enumerate(sorted(images)):
                ask([*self._ctr, "images", "tag", "--force", name, f"{HELD}:{number}"])
            yield
        finally:
            self._remove([name for name in self.images() if name.startswith(f"{HELD}:")])

    def _remove(self, references: Sequence[str]) -> None:
        if references:
            ask([*self._ctr, "images", "rm", "--sync", *references])

    def _import(self, layout: Layout, images: Sequence[Image]) -> None:
        started = time.monotonic()
        missing = layout.missing(images, self.blobs())
        large = [digest for digest, size in missing.items() if size > LARGE_BYTES]
        linked = {digest for digest in large if layout.lend(digest, self._store)}
        size = sum(missing.values())
        sent = size - sum(missing[digest] for digest in linked)
        check_free_disk((size + sent) / GIGABYTE, "an import into containerd")  # packed, unpacked
        for digest in large:
            self._ingest(layout.blob(digest), digest, missing[digest])
        self._stream(layout, images)
        seconds = time.monotonic() - started
        names = ", ".join(image.reference for image in images)
        print(
            f"imported {names}: {sent / 1e6:,.0f} of {size / 1e6:,.0f} MB sent, {seconds:.1f} s",
            flush=True,
        )

    def _ingest(self, path: Path, digest: str, size: int) -> None:
        """Make a blob known; containerd reads nothing of one that lies in its store. Without an
        image it may be collected at once: then it is in the stream, too."""
        expected = ("--expected-size", str(size), "--expected-digest", digest)
        ask([*self._ctr, "content", "ingest", *expected, f"layer-{digest}"], stdin=path)

    def _stream(self, layout: Layout, images: Sequence[Image]) -> None:
        """Send what the content store lacks, and have all images named and unpacked."""
        there = self.blobs()
        with tempfile.TemporaryFile() as said:
            command = [*self._ctr, "images", "import", "-"]
            importer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
            assert importer.stdin is not None
            try:
                with importer.stdin as pipe:
                    layout.write_archive(images, there, pipe)
            except BrokenPipeError:
                pass  # it has said why
            if importer.wait():
                said.seek(0)
                words = said.read().decode(errors="replace")
                raise CannotBuild(f"containerd did not import the images: {words}")


def checked_images(table: str) -> list[tuple[str, str, bool]]:
    """Reference, digest of the manifest and whether all layers are unpacked, for each row of what
    `ctr images check` prints."""
    rows = [row.split() for row in table.splitlines()[1:]]
    return [(row[0], row[2], row[-1] == "true") for row in rows]


def nameless(images: Mapping[str, str], leaving: Collection[str] = ()) -> list[str]:
    """References by id (`sha256:...`), of which the kubelet's plugin adds one to each image, whose
    image has no name any more, or only one of those `leaving`: they would keep it for ever."""
    by_name = {name: digest for name, digest in images.items() if not name.startswith("sha256:")}
    kept = {digest for name, digest in by_name.items() if name not in leaving}
    return [name for name in set(images) - set(by_name) if images[name] not in kept]
