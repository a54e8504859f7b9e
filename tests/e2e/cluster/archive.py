"""Container images as tar files: write the smallest one there can be, and read from a big one what
identifies it. The standard library only.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

REFERENCE = "io.containerd.image.name"
OCI_REFERENCE = "org.opencontainers.image.ref.name"
EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class Archived:
    """The content of an archive: references, each with its digest."""

    references: tuple[str, ...]
    digest: str


def write_single_file_image(path: Path, reference: str, binary: Path) -> None:
    """A docker-archive with one layer with one executable, which is the entry point."""
    layer = tar_of({binary.name: binary.read_bytes()}, mode=0o755)
    digest = hashlib.sha256(layer).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH,
        "config": {"Entrypoint": [f"/{binary.name}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created": EPOCH}],
    }
    written = json.dumps(config).encode()
    config_name = f"{hashlib.sha256(written).hexdigest()}.json"
    entry = {"Config": config_name, "RepoTags": [reference], "Layers": [f"{digest}/layer.tar"]}
    files = {
        config_name: written,
        "manifest.json": json.dumps([entry]).encode(),
        f"{digest}/layer.tar": layer,
    }
    path.write_bytes(tar_of(files))


def tar_of(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    """A tar archive with these files, the same bytes every time."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def read_identity(path: Path) -> Archived:
    """References and digest of a docker-archive or OCI archive; raises ValueError for neither."""
    with tarfile.open(path) as archive:
        names = {name.removeprefix("./"): name for name in archive.getnames()}
        for inner, reader in (("manifest.json", read_docker), ("index.json", read_oci)):
            if inner in names:
                member = archive.extractfile(names[inner])
                assert member is not None, f"{inner} is a file"
                return reader(json.load(member))
    raise ValueError(f"{path.name} is neither a docker-archive nor an OCI archive")


def read_docker(manifest: list[dict[str, object]]) -> Archived:
    """docker-archive: the configs' names are their digests, and configs name the layers."""
    references = [str(tag) for entry in manifest for tag in as_list(entry.get("RepoTags"))]
    configs = "".join(str(entry["Config"]) for entry in manifest)
    return Archived(tuple(references), hashlib.sha256(configs.encode()).hexdigest())


def read_oci(index: dict[str, list[dict[str, object]]]) -> Archived:
    """OCI: the index names digests, and its annotations name references."""
    references, digests = [], []
    for entry in index["manifests"]:
        notes = entry.get("annotations")
        if isinstance(notes, dict):
            references.append(str(notes.get(REFERENCE) or notes.get(OCI_REFERENCE) or ""))
        digests.append(str(entry["digest"]))
    named = tuple(reference for reference in references if reference)
    return Archived(named, hashlib.sha256("".join(digests).encode()).hexdigest())


def as_list(value: object) -> list[object]:
    """A JSON list, or nothing where there is null."""
    return value if isinstance(value, list) else []
