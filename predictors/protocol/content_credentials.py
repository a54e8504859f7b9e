"""Signed manifests (C2PA content credentials) in picture files, with the operator's key.

Certificate and key are checked by signing a small picture at the start. No network is used: no time
stamp is asked for, and nothing is fetched while a manifest is written.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from predictors import metrics
from predictors.errors import SigningFailed
from predictors.protocol.key_pair import load_pair, read_pem
from predictors.protocol.png import write_png
from predictors.protocol.xmp import TRAINED, Origin
from predictors.settings import FluxSettings, InvalidSetting, variable_name

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

log = logging.getLogger(__name__)

LOOK_S = 10.0  # between two looks at the files
MIN_RSA_BITS = 2048
CERT, KEY, PROVENANCE = (
    variable_name(FluxSettings, name) for name in ("c2pa_cert_file", "c2pa_key_file", "provenance")
)
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
KINDS = f"P-256, P-384, P-521, Ed25519, or RSA of at least {MIN_RSA_BITS} bits"
OFFLINE: dict[str, Any] = {
    "core": {"allowed_network_hosts": []},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": False},
    "builder": {"thumbnail": {"enabled": False}},
}
"""Settings of the library: it reaches no other machine."""
RULES = (
    "C2PA's rules refuse it: needed are the key usage digitalSignature, an extended key usage such "
    "as emailProtection, the identifier of the authority's key, and a signature of that authority"
)


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate chain and its key, as PEM, and the algorithm of the key."""

    chain: bytes
    key: bytes
    algorithm: str
    """In C2PA's words: `es256`, `es384`, `es512`, `ed25519` or `ps256`."""
    expires_at: float
    """Unix time."""


class ContentSigner:
    """Signs files with one credential. Any thread; several sign at the same time."""

    def __init__(self, credential: Credential) -> None:
        """Raises `InvalidSetting` for content that the library does not take."""
        self._c2pa = _library()
        self._error: type[Exception] = self._c2pa.C2paError
        try:
            self._context = self._make_context(credential, verifies=False)
        except self._error as error:
            raise InvalidSetting(f"{CERT} and {KEY} can't sign: {RULES}") from error

    def sign(self, file: bytes, kind: str, origin: Origin) -> bytes:
        """The file with a manifest that says it was created by a model, signed now.

        `kind` is its content type. Raises `SigningFailed`, as for a certificate that has expired.
        """
        try:
            return self._signed(self._context, file, kind, origin)
        except self._error as error:
            raise SigningFailed(
                "the picture was drawn, but the manifest of its origin could not be signed; an "
                "unsigned one is not sent"
            ) from error

    def try_out(self, credential: Credential) -> None:
        """Sign a picture and verify the signature; `InvalidSetting` if either fails."""
        file = write_png(np.zeros((16, 16, 3), np.uint8), 1)
        origin = Origin(TRAINED, "try-out", "none")
        try:
            context = self._make_context(credential, verifies=True)
            self._signed(context, file, "image/png", origin)
        except self._error as error:
            raise InvalidSetting(f"the certificate in {CERT} can't sign. {RULES}") from error

    def _make_context(self, credential: Credential, *, verifies: bool) -> Any:
        c2pa = self._c2pa
        info = c2pa.C2paSignerInfo(credential.algorithm, credential.chain, credential.key, None)
        verify = OFFLINE["verify"] | {"verify_after_sign": verifies}
        signer = c2pa.Signer.from_info(info)
        return c2pa.Context.from_dict(OFFLINE | {"verify": verify}, signer=signer)

    def _signed(self, context: Any, file: bytes, kind: str, origin: Origin) -> bytes:
        target = io.BytesIO()
        with self._c2pa.Builder(_manifest(origin), context=context) as builder:
            builder.sign(kind, io.BytesIO(file), target)
        return target.getvalue()


def _manifest(origin: Origin) -> dict[str, Any]:
    # without a prompt: the file's XMP has it, where it was asked for
    name, _, version = origin.tool.partition(" ")
    action = {
        "action": "c2pa.created",
        "digitalSourceType": origin.source_type,
        "softwareAgent": {"name": f"{origin.tool}, model {origin.model}"},
    }
    return {
        "claim_generator_info": [{"name": name, "version": version or "0"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }


class FollowedSigner:
    """Signs with the content of the operator's files, which is read again while pictures are
    signed. Content that can't be used is logged once and tried again at every look; what was in
    use stays. Any thread."""

    def __init__(self, settings: FluxSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `InvalidSetting` for content that can't be used."""
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = clock()
        self._problem = ""
        self._files = _read_files(settings)
        self._signer = _tried_signer(self._files)

    def sign(self, file: bytes, kind: str, origin: Origin) -> bytes:
        """As `ContentSigner.sign`."""
        # one thread looks; the others go on with what they have
        if self._clock() - self._read_at >= LOOK_S and self._lock.acquire(blocking=False):
            try:
                self._follow()
            finally:
                self._lock.release()
        return self._signer.sign(file, kind, origin)

    def _follow(self) -> None:
        self._read_at = self._clock()
        try:
            found = _read_files(self._settings)
            if found != self._files:
                self._signer = _tried_signer(found)
                self._files = found
                log.info("C2PA: new certificate files are in use")
            self._problem = ""
        except (InvalidSetting, OSError) as error:  # it may have passed at the next look
            if self._problem != str(error):  # said once
                log.error("C2PA: the files can't be used, what was read before stays: %s", error)
            self._problem = str(error)


def make_signer(settings: FluxSettings) -> FollowedSigner | None:
    """The signer that the settings ask for, tried out; None where they ask for none.

    Raises `InvalidSetting` naming the variable and what is wrong with its file.
    """
    given = {CERT: settings.c2pa_cert_file, KEY: settings.c2pa_key_file}
    if settings.provenance != "c2pa":
        for name in filter(given.get, given):
            value = settings.provenance
            raise InvalidSetting(f"{name} is set, but {PROVENANCE} is {value}; set it to c2pa")
        return None
    for name, path in given.items():
        if not path:
            raise InvalidSetting(f"{PROVENANCE} is c2pa, but {name} is not set; name the file")
    return FollowedSigner(settings)


def _read_files(settings: FluxSettings) -> tuple[bytes, bytes]:
    """Certificate chain and key."""
    return read_pem(CERT, settings.c2pa_cert_file), read_pem(KEY, settings.c2pa_key_file)


def _tried_signer(files: tuple[bytes, bytes]) -> ContentSigner:
    _library()
    credential = read_credential(*files)
    signer = ContentSigner(credential)
    signer.try_out(credential)
    metrics.c2pa_certificate_expiry_timestamp_seconds.set(credential.expires_at)
    return signer


def _library() -> Any:
    try:
        import c2pa  # an extra
    except ImportError as error:
        raise InvalidSetting(
            f"{PROVENANCE} is c2pa, but the package c2pa-python is not installed: "
            "pip install vision-predictors[c2pa]"
        ) from error
    return c2pa


def read_credential(chain: bytes, raw_key: bytes) -> Credential:
    """The content of the files. Raises `InvalidSetting` for a certificate or key that can't be
    used, that do not belong together, or whose time has not come or is over."""
    from cryptography.hazmat.primitives import serialization

    cert, key = load_pair(CERT, chain, KEY, raw_key)
    algorithm = _algorithm(key)
    _check_time(cert, datetime.now(UTC))
    # the library reads no other form of a key
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Credential(chain, pem, algorithm, cert.not_valid_after_utc.timestamp())


def _algorithm(key: object) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS:
        return "ps256"
    raise InvalidSetting(f"the key in {KEY} is of a kind that can't sign manifests; use {KINDS}")


def _check_time(cert: Certificate, now: datetime) -> None:
    start, end = cert.not_valid_before_utc, cert.not_valid_after_utc
    if not start <= now <= end:
        raise InvalidSetting(
            f"the certificate in {CERT} is valid from {start:%Y-%m-%d %H:%M} to "
            f"{end:%Y-%m-%d %H:%M} UTC; it is {now:%Y-%m-%d %H:%M} now"
        )
