"""Certificates for tests, and a folder of them as Kubernetes mounts a Secret."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from predictors.settings import TlsSettings

NOW = datetime.datetime.now(datetime.UTC)

SigningKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM."""

    cert: bytes
    key: bytes


class Authority:
    """A certificate authority that exists only here."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._cert = (
            self._builder(self._name, self._key, 3650)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self._cert.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, name: str = "localhost", *alternatives: x509.GeneralName, days: float = 30
    ) -> Pair:
        """A certificate for `name` and 127.0.0.1 that expires in so many days."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = alternatives or (
            x509.DNSName(name),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        )
        cert = (
            self._builder(subject, key, days)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(self._key_identifier(), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Pair(cert.public_bytes(serialization.Encoding.PEM), key_pem(key))

    def issue_signer(
        self,
        key: SigningKey | None = None,
        *,
        days: float = 30,
        usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.EMAIL_PROTECTION,
    ) -> Pair:
        """A certificate that may sign C2PA manifests, with this authority's behind it; of P-256
        unless `key` is given. Without `usage` it has no extended key usage."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        names = [(NameOID.COMMON_NAME, "signer"), (NameOID.ORGANIZATION_NAME, "test operator")]
        subject = x509.Name([x509.NameAttribute(*name) for name in names])
        builder = (
            self._builder(subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(digital_signature=True), critical=True)
            .add_extension(self._key_identifier(), critical=False)
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        cert = builder.sign(self._key, hashes.SHA256())
        return Pair(cert.public_bytes(serialization.Encoding.PEM) + self.pem, key_pem(key))

    def _builder(self, subject: x509.Name, key: SigningKey, days: float) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(days=60))
            .not_valid_after(NOW + datetime.timedelta(days=days))
        )

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())

    def client_context(self, files: Path | None = None, pair: Pair | None = None) -> ssl.SSLContext:
        """A client that trusts this authority, and presents `pair`, which is written to `files`.

        It demands all of RFC 5280, as the default context does from Python 3.13 on.
        """
        context = ssl.create_default_context(cadata=self.pem.decode())
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if pair is not None:
            assert files is not None
            path = files / "client.pem"
            path.write_bytes(pair.cert + pair.key)
            context.load_cert_chain(path)
        return context


def key_usage(**allowed: bool) -> x509.KeyUsage:
    """The extension that allows these uses, named as `x509.KeyUsage` does, and no others."""
    uses = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    return x509.KeyUsage(**{**uses, **allowed})


def key_pem(key: SigningKey, password: bytes = b"") -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


class MountedSecret:
    """A folder with `tls.crt`, `tls.key` and `ca.crt`, replaced together by swapping a symlink."""

    def __init__(self, folder: Path, pair: Pair, ca: bytes = b"") -> None:
        self.folder = folder
        self._times = 0
        self.replace(pair, ca)
        names = ("tls.crt", "tls.key", "ca.crt") if ca else ("tls.crt", "tls.key")
        for name in names:
            (folder / name).symlink_to(f"..data/{name}")

    def replace(self, pair: Pair, ca: bytes = b"") -> None:
        self._times += 1
        target = self.folder / f"..{self._times}"
        target.mkdir()
        for name, content in (("tls.crt", pair.cert), ("tls.key", pair.key), ("ca.crt", ca)):
            (target / name).write_bytes(content)
        link = self.folder / "..data_tmp"
        link.symlink_to(target.name)
        link.replace(self.folder / "..data")

    def settings(self, reload_s: float = 3600.0) -> TlsSettings:
        ca = self.folder / "ca.crt"
        return TlsSettings(
            cert_file=str(self.folder / "tls.crt"),
            key_file=str(self.folder / "tls.key"),
            client_ca_file=str(ca) if ca.is_symlink() else "",
            reload_s=reload_s,
        )
