"""An OCI layout folder: which blobs an image consists of, and a tar stream of some of them.

Content is addressed by its digest, so a stream may leave out whatever the other side has already: a
new product is sent without the 5 GB of wheels beneath it.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

REF = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a layout."""

    reference: str
    manifest: Mapping[str, Any]
    """The descriptor in index.json."""
    config: str
    """Digest."""
    layers: Sequence[tuple[str, int]]
    """Digest and bytes, from the base upwards."""

    @property
    def digest(self) -> str:
        """Of the manifest: what the image is."""
        return str(self.manifest["digest"])

    @property
    def blobs(self) -> list[str]:
        """Digests of all it consists of; a store that has the manifest should have the rest."""
        return [*(digest for digest, _ in self.layers), self.config, self.digest]


class Layout:
    """A folder with index.json and blobs/sha256/. Raises `OSError` where it can't be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = folder / "index.json"

    def blob(self, digest: str) -> Path:
        """Where the content of a digest lies."""
        algorithm, _, name = digest.partition(":")
        return self.folder / "blobs" / algorithm / name

    def images(self) -> list[Image]:
        """All that are named; none when there is no layout yet."""
        return [self._image(found, found["annotations"][REF]) for found in self._named()]

    def _named(self) -> list[Mapping[str, Any]]:
        if not self._index.exists():
            return []
        found = json.loads(self._index.read_text())["manifests"]
        return [descriptor for descriptor in found if REF in descriptor.get("annotations", {})]

    def _image(self, descriptor: Mapping[str, Any], reference: str) -> Image:
        manifest = json.loads(self.blob(descriptor["digest"]).read_text())
        layers = [(layer["digest"], layer["size"]) for layer in manifest["layers"]]
        return Image(reference, descriptor, manifest["config"]["digest"], layers)

    def prune(self) -> int:
        """Forget images that lost their name to a newer one, and blobs that no image needs; how
        many bytes that freed."""
        index = json.loads(self._index.read_text())
        self._index.write_text(json.dumps({**index, "manifests": self._named()}))
        needed = {digest for image in self.images() for digest in image.blobs}
        freed = 0
        for path in (self.folder / "blobs" / "sha256").iterdir():
            if f"sha256:{path.name}" not in needed:
                freed += path.stat().st_size
                path.unlink()
        return freed

    def missing(self, images: Sequence[Image], there: Collection[str]) -> dict[str, int]:
        """Bytes of each blob of `images` that is not `there`, in the order of a stream."""
        blobs = [blob for image in images for blob in image.blobs if blob not in there]
        return {blob: self.blob(blob).stat().st_size for blob in blobs}

    def write_archive(
        self, images: Sequence[Image], there: Collection[str], out: IO[bytes]
    ) -> None:
        """Write `images` as an OCI archive without the blobs in `there`.

        Raises `OSError` when the reader of `out` goes away.
        """
        index = {"schemaVersion": 2, "manifests": [_named(image) for image in images]}
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            _add(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
            _add(tar, "index.json", json.dumps(index).encode())
            for digest in self.missing(images, there):
                path = self.blob(digest)
                tar.add(path, arcname=path.relative_to(self.folder).as_posix(), recursive=False)

    def lend(self, digest: str, other: Layout) -> bool:
        """Have a blob in `other`, too, as a hard link, so that the disk holds it once.

        False where that can't be: no such folder, on another file system, or another file there.
        """
        ours, theirs = self.blob(digest), other.blob(digest)
        if not other.folder.is_dir() or other.folder.stat().st_dev != ours.stat().st_dev:
            return False
        theirs.parent.mkdir(parents=True, exist_ok=True)
        if not theirs.exists():
            os.link(ours, theirs)
        return theirs.samefile(ours)


def _named(image: Image) -> dict[str, Any]:
    names = {FULL_NAME: image.reference, REF: image.reference.rpartition(":")[2]}
    return {**image.manifest, "annotations": names}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
