"""The certificate, key and client authorities of the TLS ports, read again while the process runs.

Files are compared by content: Kubernetes swaps a symlink, and their times tell nothing. Connections
that are open keep what they began with.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from predictors import metrics
from predictors.protocol.key_pair import load_pair, read_pem
from predictors.settings import InvalidSetting, TlsSettings, variable_name

if TYPE_CHECKING:
    import grpc

log = logging.getLogger(__name__)

MAX_READINGS = 4
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2: forward secrecy and AEAD; 1.3 has no others
ALPN = ("http/1.1",)
CERT, KEY, CLIENT_CA = (
    variable_name(TlsSettings, name) for name in ("cert_file", "key_file", "client_ca_file")
)


@dataclass(frozen=True, slots=True)
class PemFiles:
    """Content of the files, as PEM."""

    cert: bytes
    key: bytes
    client_ca: bytes = b""
    """Empty where clients need no certificate."""

    @classmethod
    def read(cls, settings: TlsSettings) -> PemFiles:
        """Raises `InvalidSetting` for a file that can't be read, is empty or has more than a MiB.

        Reads until two readings agree, since the files may be replaced meanwhile.
        """
        ca, last = settings.client_ca_file, None
        for _ in range(MAX_READINGS):
            found = cls(
                read_pem(CERT, settings.cert_file),
                read_pem(KEY, settings.key_file),
                read_pem(CLIENT_CA, ca) if ca else b"",
            )
            if found == last:
                break
            last = found
        return found


def check_tls(settings: TlsSettings) -> bool:
    """True if TLS is on. Raises `InvalidSetting` where only a part of it is set."""
    for name, value in ((KEY, settings.key_file), (CLIENT_CA, settings.client_ca_file)):
        if value and not settings.cert_file:
            raise InvalidSetting(f"{name} is set, but {CERT} is not; set it too, or neither")
    if settings.cert_file and not settings.key_file:
        raise InvalidSetting(f"{CERT} is set, but {KEY} is not; set it too, or neither")
    return bool(settings.cert_file)


def check_certificates(settings: TlsSettings) -> None:
    """Raise what `Certificates` would raise, before minutes of loading."""
    if check_tls(settings):
        make_context(PemFiles.read(settings))


class Certificates:
    """The content in use, as an `ssl` context and as gRPC credentials. Any thread.

    The constructor raises `InvalidSetting` for files that can't be used. `start` begins to follow
    the files on a thread of its own, until `stop`.
    """

    def __init__(self, settings: TlsSettings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tls-reload", daemon=True)
        self._refused: tuple[PemFiles | None, str] | None = None  # content, and why
        self._files = PemFiles.read(settings)
        self.context = make_context(self._files)
        """For REST connections that come from now on."""
        self._report_success()

    @property
    def needs_client_certificate(self) -> bool:
        return bool(self._files.client_ca)

    # -- the files ---------------------------------------------------------------------------------
    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Follow the files no more. Returns at once: a file on a lost volume may block the
        thread."""
        self._stopped.set()

    def _follow(self) -> None:
        while not self._stopped.wait(self._settings.reload_s):
            try:
                self.reload()
            except Exception:  # a certificate that cryptography trips over must not end the thread
                metrics.tls_reload_failing.set(1)
                log.exception("TLS: the new files can't be used, the old ones stay")

    def reload(self) -> bool:
        """Use the files' content if it is new. If it can't be used, log that and keep what is in
        use. Blocks. Returns True if the content changed."""
        found: PemFiles | None = None
        try:
            found = PemFiles.read(self._settings)
            if found == self._files:
                if self._refused is not None:  # what was wrong has been undone
                    self._report_success()
                return False
            if self._refused is not None and found == self._refused[0]:
                return False
            context = make_context(found)
        except InvalidSetting as error:
            self._report_failure(found, error)
            return False
        self._files, self.context = found, context
        self._report_success()
        log.info("TLS: new certificate files are in use, for connections that come from now on")
        return True

    def _report_success(self) -> None:
        self._refused = None
        metrics.tls_reload_failing.set(0)
        metrics.tls_last_reload_timestamp_seconds.set(self._clock())
        expires_at = _expiry(self._files)
        metrics.tls_certificate_expiry_timestamp_seconds.set(expires_at)
        if expires_at < self._clock():
            log.warning("TLS: the certificate has expired; clients will refuse it")

    def _report_failure(self, found: PemFiles | None, error: InvalidSetting) -> None:
        refused = found, error.message
        if refused != self._refused:  # once, not at every look
            log.error("TLS: the new files can't be used, the old ones stay: %s", error.message)
        self._refused = refused
        metrics.tls_reload_failing.set(1)

    # -- gRPC --------------------------------------------------------------------------------------
    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Credentials that follow the content. gRPC asks for it before each handshake, on threads
        of its own."""
        import grpc

        configured = self._files

        def changed() -> Any:
            nonlocal configured
            if configured is self._files:
                return None
            configured = self._files
            return _grpc_configuration(configured)

        return grpc.dynamic_ssl_server_credentials(
            _grpc_configuration(configured), changed, self.needs_client_certificate
        )


def _grpc_configuration(files: PemFiles) -> Any:
    import grpc

    return grpc.ssl_server_certificate_configuration(
        [(files.key, files.cert)], files.client_ca or None
    )


# -- files to a context ----------------------------------------------------------------------------
def make_context(files: PemFiles) -> ssl.SSLContext:
    """The server's context, TLS 1.2 at least. Raises `InvalidSetting` for content that can't be
    used."""
    _check(files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(list(ALPN))
    context.options |= ssl.OP_NO_RENEGOTIATION
    with _in_memory(files.cert + b"\n" + files.key) as path, _refusals(CERT):
        context.load_cert_chain(path, password=lambda: "")  # never asks on a terminal
    if files.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        with _refusals(CLIENT_CA):
            context.load_verify_locations(cadata=files.client_ca.decode("ascii", "replace"))
    return context


def _check(files: PemFiles) -> None:
    """Raise `InvalidSetting` with a sentence for what `ssl` would refuse with a number."""
    from cryptography.x509 import InvalidVersion, load_pem_x509_certificates

    load_pair(CERT, files.cert, KEY, files.key)
    if files.client_ca:
        try:
            load_pem_x509_certificates(files.client_ca)
        except (ValueError, InvalidVersion) as error:
            raise InvalidSetting(f"{CLIENT_CA} has no certificate as PEM") from error


def _expiry(files: PemFiles) -> float:
    """Unix time at which the first of the served certificates expires."""
    from cryptography.x509 import load_pem_x509_certificates

    ends: list[datetime] = [x.not_valid_after_utc for x in load_pem_x509_certificates(files.cert)]
    return min(ends).timestamp()


@contextlib.contextmanager
def _in_memory(raw: bytes) -> Iterator[str]:
    """A path of these bytes, never on a disk: `ssl` takes certificate and key by path only, and a
    file may change between two reads."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, raw)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        reason = (error.reason or "unknown").replace("_", " ").lower()
        raise InvalidSetting(f"{name} can't be used for TLS: {reason}") from error
