"""A certificate authority for one cluster, and the certificates that its parts serve and present.
Drives openssl.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

DAYS = "30"


@dataclass(frozen=True)
class Certificate:
    """One leaf: file name, subject as openssl writes it, alternative names."""

    name: str
    subject: str
    alternative_names: tuple[str, ...]

    def extensions(self) -> str:
        """The extensions that openssl puts into the certificate."""
        names = ",".join(self.alternative_names)
        return (
            f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n"
            "authorityKeyIdentifier=keyid\n"
        )


def leaves(node_address: str, api_address: str) -> tuple[Certificate, ...]:
    """The certificates of a cluster whose node and API service have these addresses."""
    addresses = ("127.0.0.1", node_address, api_address)
    names = (
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "keda-metrics-apiserver.keda.svc",
        "keda-operator.keda.svc",
        "metrics-server.kube-system.svc",
    )
    served = (*(f"IP:{a}" for a in addresses), *(f"DNS:{n}" for n in names))
    kubelet_client = "/O=system:masters/CN=kube-apiserver-kubelet-client"
    return (
        Certificate("server", "/CN=kube-apiserver", served),
        Certificate("front-proxy", "/CN=front-proxy", ("DNS:client",)),
        Certificate("kubelet-client", kubelet_client, ("DNS:client",)),
    )


def write_certificates(folder: Path, wanted: tuple[Certificate, ...]) -> None:
    """The authority (`ca`), the key for ServiceAccount tokens (`sa.key`), and every leaf.

    Raises `subprocess.CalledProcessError` with openssl's words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make_key(folder / "ca.key")
    openssl(
        "req", "-x509", "-new", "-key", folder / "ca.key", "-days", DAYS,
        "-subj", "/CN=e2e-ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        "-out", folder / "ca.crt",
    )  # fmt: skip
    openssl("genrsa", "-traditional", "-out", folder / "sa.key", "2048")
    for certificate in wanted:
        write_leaf(folder, certificate)


def write_leaf(folder: Path, certificate: Certificate) -> None:
    """One key, and its certificate signed by the authority of the folder."""
    stem = folder / certificate.name
    request, extensions = stem.with_suffix(".csr"), stem.with_suffix(".ext")
    make_key(stem.with_suffix(".key"))
    openssl(
        "req",
        "-new",
        "-key",
        stem.with_suffix(".key"),
        "-subj",
        certificate.subject,
        "-out",
        request,
    )
    extensions.write_text(certificate.extensions())
    openssl(
        "x509", "-req", "-in", request, "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key",
        "-CAcreateserial", "-days", DAYS, "-extfile", extensions, "-out", stem.with_suffix(".crt"),
    )  # fmt: skip


def make_key(path: Path) -> None:
    """An elliptic key: made in milliseconds."""
    openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", path)


def openssl(*words: object) -> None:
    """One openssl command."""
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
