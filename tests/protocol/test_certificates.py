"""The TLS files: content that can't be used is refused with a sentence, and never replaces good
content."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from predictors import metrics
from predictors.protocol.certificates import Certificates, check_tls
from predictors.settings import InvalidSetting, TlsSettings
from tests.http.pki import NOW, Authority, MountedSecret, Pair, key_pem

AUTHORITY = Authority()
GOOD = AUTHORITY.issue()
OTHER = AUTHORITY.issue()
DAY_S = 86_400.0
CERT, KEY, CA = (f"PREDICTORS_TLS_{name}_FILE" for name in ("CERT", "KEY", "CLIENT_CA"))

BAD: dict[str, tuple[Pair, bytes, str]] = {
    "no certificate": (replace(GOOD, cert=b"hello"), b"", f"{CERT} has no certificate as PEM"),
    "empty certificate": (replace(GOOD, cert=b""), b"", f"the file of {CERT} is empty"),
    "cut certificate": (replace(GOOD, cert=GOOD.cert[:200]), b"", f"{CERT} has no certificate"),
    "no key": (replace(GOOD, key=b"hello"), b"", f"{KEY} has no private key as PEM"),
    "another's key": (replace(GOOD, key=OTHER.key), b"", f"the key in {KEY} does not belong to"),
    "key with a password": (
        replace(GOOD, key=key_pem(ec.generate_private_key(ec.SECP256R1()), b"secret")),
        b"",
        f"{KEY} has a password",
    ),
    "swapped": (Pair(GOOD.key, GOOD.cert), b"", f"{CERT} has no certificate"),
    "no authority": (GOOD, b"hello", f"{CA} has no certificate as PEM"),
    "too large": (replace(GOOD, cert=GOOD.cert + b"\n" * 2**20), b"", "more than 1048576 bytes"),
}


def value(series: object) -> float:
    return series._value.get()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("name", BAD)
def test_bad_files_at_the_start_are_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    pair, ca, message = BAD[name]
    settings = MountedSecret(tmp_path, pair, ca).settings()
    with pytest.raises(InvalidSetting) as failure:
        Certificates(settings)
    assert message in failure.value.message
    assert str(tmp_path) not in failure.value.message


@pytest.mark.parametrize("name", BAD)
def test_bad_files_later_leave_the_good_ones_in_use(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair, ca, message = BAD[name]
    secret = MountedSecret(tmp_path, GOOD, AUTHORITY.pem)
    certificates = Certificates(secret.settings())
    before = certificates.context
    secret.replace(pair, ca or AUTHORITY.pem)
    with caplog.at_level(logging.ERROR):
        assert [certificates.reload() for _ in range(3)] == [False] * 3
    assert certificates.context is before
    assert [message in x.getMessage() for x in caplog.records] == [True]  # said once
    assert value(metrics.tls_reload_failing) == 1
    secret.replace(OTHER, AUTHORITY.pem)
    assert certificates.reload()
    assert certificates.context is not before
    assert value(metrics.tls_reload_failing) == 0


def test_an_undone_mistake_is_no_failure_any_more(tmp_path: Path) -> None:
    secret = MountedSecret(tmp_path, GOOD)
    certificates = Certificates(secret.settings())
    secret.replace(replace(GOOD, key=OTHER.key))
    certificates.reload()
    assert value(metrics.tls_reload_failing) == 1
    secret.replace(GOOD)
    assert not certificates.reload()
    assert value(metrics.tls_reload_failing) == 0


def test_a_missing_file_later_leaves_the_good_ones_in_use(tmp_path: Path) -> None:
    secret = MountedSecret(tmp_path, GOOD)
    certificates = Certificates(secret.settings())
    (tmp_path / "..data").unlink()
    assert not certificates.reload()
    assert value(metrics.tls_reload_failing) == 1


@pytest.mark.parametrize("fault", ["pipe", "bug"])
def test_no_fault_ends_the_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    secret = MountedSecret(tmp_path, GOOD)
    certificates = Certificates(replace(secret.settings(), reload_s=0.1))
    failed, mended, real = threading.Event(), threading.Event(), Certificates.reload

    def reload(each: Certificates) -> bool:
        if fault == "bug" and not mended.is_set():
            failed.set()
            raise RuntimeError("a bug")
        if real(each):
            changed.set()
        elif value(metrics.tls_reload_failing):
            failed.set()
        return False

    changed = threading.Event()
    monkeypatch.setattr(Certificates, "reload", reload)
    path = (tmp_path / "tls.crt").resolve()
    if fault == "pipe":
        path.unlink()
        os.mkfifo(path)
    certificates.start()
    assert failed.wait(60)
    mended.set()
    secret.replace(OTHER)
    assert changed.wait(60)
    certificates.stop()
    assert value(metrics.tls_reload_failing) == 0


def test_an_emptied_authority_does_not_let_everybody_in(tmp_path: Path) -> None:
    secret = MountedSecret(tmp_path, GOOD, AUTHORITY.pem)
    certificates = Certificates(secret.settings())
    secret.replace(GOOD, b"")
    assert not certificates.reload()
    assert certificates.context.verify_mode is ssl.CERT_REQUIRED
    assert certificates.needs_client_certificate


def test_content_counts_and_times_do_not(tmp_path: Path) -> None:
    secret = MountedSecret(tmp_path, GOOD)
    certificates = Certificates(secret.settings())
    before = certificates.context
    path = (tmp_path / "tls.crt").resolve()
    os.utime(path, (1, 1))
    assert not certificates.reload()
    assert certificates.context is before
    at = path.stat().st_mtime_ns
    secret.replace(OTHER)
    for name in ("tls.crt", "tls.key"):
        os.utime((tmp_path / name).resolve(), ns=(at, at))
    assert certificates.reload()


def test_series_show_the_first_expiry_and_the_last_reload(tmp_path: Path) -> None:
    chain = AUTHORITY.issue(days=20)
    secret = MountedSecret(tmp_path, replace(chain, cert=chain.cert + AUTHORITY.issue(days=5).cert))
    certificates = Certificates(secret.settings(), clock=lambda: 1000.0)
    expiry = value(metrics.tls_certificate_expiry_timestamp_seconds)
    assert abs(expiry - (NOW.timestamp() + 5 * DAY_S)) < 2
    assert value(metrics.tls_last_reload_timestamp_seconds) == 1000.0
    secret.replace(AUTHORITY.issue(days=50))
    certificates.reload()
    expiry = value(metrics.tls_certificate_expiry_timestamp_seconds)
    assert abs(expiry - (NOW.timestamp() + 50 * DAY_S)) < 2


def test_an_expired_certificate_is_logged_and_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = MountedSecret(tmp_path, AUTHORITY.issue(days=-1))
    with caplog.at_level(logging.WARNING):
        Certificates(secret.settings())
    assert "has expired" in caplog.text


def test_files_that_change_while_they_are_read_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = MountedSecret(tmp_path, GOOD)
    certificates = Certificates(secret.settings())
    from predictors.protocol import certificates as module

    read, times = module.read_pem, 0

    def swapping(name: str, path: str) -> bytes:
        nonlocal times
        times += 1
        if times == 2:  # between the certificate and the key
            secret.replace(OTHER)
        return read(name, path)

    monkeypatch.setattr(module, "read_pem", swapping)
    assert certificates.reload()
    assert value(metrics.tls_reload_failing) == 0


@pytest.mark.parametrize(
    ("settings", "is_on"),
    [
        (TlsSettings(), False),
        (TlsSettings(cert_file="c", key_file="k"), True),
        (TlsSettings(cert_file="c", key_file="k", client_ca_file="a"), True),
    ],
    ids=["nothing", "pair", "pair and authority"],
)
def test_tls_is_on_with_a_pair(settings: TlsSettings, is_on: bool) -> None:
    assert check_tls(settings) is is_on


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: TlsSettings(cert_file="c"), (CERT, KEY)),
        (lambda: TlsSettings(key_file="k"), (KEY, CERT)),
        (lambda: TlsSettings(client_ca_file="a"), (CA, CERT)),
    ],
    ids=["no key", "no certificate", "only an authority"],
)
def test_a_part_of_the_settings_is_refused(
    make: Callable[[], TlsSettings], names: tuple[str, str]
) -> None:
    with pytest.raises(InvalidSetting) as failure:
        check_tls(make())
    assert all(name in failure.value.message for name in names)


def test_the_context_is_modern(tmp_path: Path) -> None:
    context = Certificates(MountedSecret(tmp_path, GOOD).settings()).context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    old = [c for c in context.get_ciphers() if c["protocol"] == "TLSv1.2"]
    assert old
    assert all(c["aead"] and "ECDHE" in c["name"] for c in old)
