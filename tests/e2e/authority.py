"""A certificate authority of a test's own, by openssl, and the Secrets that hold what it makes, and
keys and passwords.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.kube import run


def openssl(*words: str | Path) -> None:
    """Run openssl; raises `subprocess.CalledProcessError`."""
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


class Authority:
    """A certificate authority in a folder. Its certificates have all that RFC 5280 wants: Python
    checks that from 3.13 on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "2", "-subj", "/CN=e2e", "-keyout", folder / "ca.key",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-out", folder / "ca.crt",
        )  # fmt: skip
        self._issuer = folder / "issuer.ext"
        self._issuer.write_text("authorityKeyIdentifier=keyid\n")

    def certificate(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """A new certificate and its key for a server or client of this name, valid for `hosts`."""
        key, asked, made = (self.folder / f"{name}.{end}" for end in ("key", "csr", "crt"))
        names = ",".join(f"DNS:{host}" for host in hosts)
        openssl(
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", f"/CN={name}", "-keyout", key, "-out", asked,
            *(("-addext", f"subjectAltName={names}") if names else ()),
        )  # fmt: skip
        openssl(
            "x509", "-req", "-in", asked, "-CA", self.folder / "ca.crt",
            "-CAkey", self.folder / "ca.key", "-days", "2", "-copy_extensions", "copy",
            "-extfile", self._issuer, "-out", made,
        )  # fmt: skip
        return made, key


def secret(name: str, kind: str = "Opaque", **files: bytes) -> dict[str, Any]:
    """A Secret; `_` in a file's name stands for a dot."""
    data = {key.replace("_", "."): base64.b64encode(text).decode() for key, text in files.items()}
    about = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
    return {**about, "type": kind, "data": data}


def pair(name: str, made: tuple[Path, Path]) -> dict[str, Any]:
    """A Secret of the type that has a certificate and its key."""
    files = {"tls_crt": made[0].read_bytes(), "tls_key": made[1].read_bytes()}
    return secret(name, "kubernetes.io/tls", **files)


def keys(*plain: str, name: str = "callers") -> dict[str, Any]:
    """The Secret with the file of the server's keys, by their digests."""
    entries = [
        {"name": key.removeprefix("vpk_"), "sha256": hashlib.sha256(key.encode()).hexdigest()}
        for key in plain
    ]
    return secret(name, keys_json=json.dumps({"keys": entries}).encode())


def users(**passwords: str) -> str:
    """A gateway's users with their passwords, as htpasswd writes them."""
    hashed = {user: run("openssl", "passwd", "-apr1", word) for user, word in passwords.items()}
    return "".join(f"{user}:{line.strip()}\n" for user, line in hashed.items())
