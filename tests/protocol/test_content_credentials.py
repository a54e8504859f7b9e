"""Signed manifests: written with a small authority's certificate, read by C2PA's own reader."""

from __future__ import annotations

import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image
from prometheus_client import REGISTRY

from predictors.errors import SigningFailed
from predictors.protocol import content_credentials
from predictors.protocol.content_credentials import (
    LOOK_S,
    ContentSigner,
    Credential,
    FollowedSigner,
    make_signer,
)
from predictors.protocol.png import write_png
from predictors.protocol.xmp import COMPOSITE, TRAINED, Origin, xmp_packet
from predictors.settings import FluxSettings, InvalidSetting
from tests.http.pki import NOW, Authority, Pair, SigningKey, key_pem

AUTHORITY = Authority()
GOOD = AUTHORITY.issue_signer()
ORIGIN = Origin(TRAINED, "vision-predictors 9.9", "flux", "a secret prompt")
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
CERT, KEY = (f"PREDICTORS_FLUX_C2PA_{name}_FILE" for name in ("CERT", "KEY"))


def signing(folder: Path, pair: Pair) -> FluxSettings:
    """The settings that name the pair's files."""
    cert, key = folder / "tls.crt", folder / "tls.key"
    cert.write_bytes(pair.cert)
    key.write_bytes(pair.key)
    return FluxSettings(provenance="c2pa", c2pa_cert_file=str(cert), c2pa_key_file=str(key))


def signer_of(folder: Path, pair: Pair) -> FollowedSigner:
    pytest.importorskip("c2pa")
    signer = make_signer(signing(folder, pair))
    assert signer is not None
    return signer


def file_of(kind: str) -> bytes:
    if kind == "png":
        return write_png(PIXELS, 1, xmp_packet(ORIGIN))
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind.upper())
    return file.getvalue()


def manifest_of(file: bytes, kind: str) -> dict[str, Any]:
    """The manifest, validated by a reader that trusts the authority."""
    import c2pa

    trust = {"trust": {"user_anchors": AUTHORITY.pem.decode()}}
    with (
        c2pa.Context.from_dict(trust) as context,
        c2pa.Reader(kind, io.BytesIO(file), context=context) as reader,
    ):
        assert reader.get_validation_state() == "Trusted"
        found: dict[str, Any] = json.loads(reader.json())
    return dict(found["manifests"][found["active_manifest"]])


def pixels_of(file: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image)


# -- good ones -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_reader_finds_a_valid_manifest_and_the_pixels_are_the_same(
    kind: str, tmp_path: Path
) -> None:
    plain = file_of(kind)
    file = signer_of(tmp_path, GOOD).sign(plain, f"image/{kind}", ORIGIN)
    found = manifest_of(file, f"image/{kind}")
    [actions] = [x for x in found["assertions"] if x["label"].startswith("c2pa.actions")]
    [action] = actions["data"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", TRAINED)
    assert "model flux" in action["softwareAgent"]["name"]
    generator = found["claim_generator_info"][0]
    assert (generator["name"], generator["version"]) == ("vision-predictors", "9.9")
    assert found["signature_info"]["issuer"] == "test operator"
    assert "time" not in found["signature_info"]
    assert "secret" not in json.dumps(found)
    assert np.array_equal(pixels_of(file), pixels_of(plain))
    if kind == "png":
        assert xmp_packet(ORIGIN) in file


def test_a_changed_pixel_makes_the_manifest_invalid(tmp_path: Path) -> None:
    file = signer_of(tmp_path, GOOD).sign(file_of("webp"), "image/webp", ORIGIN)
    import c2pa

    place = file.rindex(b"VP8 ") + 60
    changed = file[:place] + bytes([file[place] ^ 1]) + file[place + 1 :]
    with c2pa.Reader("image/webp", io.BytesIO(changed)) as reader:
        assert reader.get_validation_state() == "Invalid"


def test_a_composite_says_so(tmp_path: Path) -> None:
    origin = Origin(COMPOSITE, "tool 1", "flux")
    file = signer_of(tmp_path, GOOD).sign(file_of("png"), "image/png", origin)
    assert COMPOSITE in json.dumps(manifest_of(file, "image/png"))


KEYS: dict[str, SigningKey] = {
    "Es384": ec.generate_private_key(ec.SECP384R1()),
    "Es512": ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "Ps256": rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("algorithm", KEYS)
def test_the_key_sets_the_algorithm(algorithm: str, tmp_path: Path) -> None:
    signer = signer_of(tmp_path, AUTHORITY.issue_signer(KEYS[algorithm]))
    found = manifest_of(signer.sign(file_of("png"), "image/png", ORIGIN), "image/png")
    assert found["signature_info"]["alg"] == algorithm


def test_several_threads_sign_at_the_same_time(tmp_path: Path) -> None:
    signer = signer_of(tmp_path, GOOD)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(signer.sign, file_of("png"), "image/png", ORIGIN) for _ in range(24)]
        labels = [manifest_of(job.result(), "image/png")["label"] for job in jobs]
    assert len(set(labels)) == 24


def test_a_failure_while_signing_sends_no_unmarked_picture() -> None:
    pytest.importorskip("c2pa")
    expired = AUTHORITY.issue_signer(days=-1)
    signer = ContentSigner(Credential(expired.cert, expired.key, "es256", 0.0))
    with pytest.raises(SigningFailed, match="unsigned one is not sent"):
        signer.sign(file_of("png"), "image/png", ORIGIN)


def test_renewed_files_are_used_and_broken_ones_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("c2pa")
    now = [0.0]
    signer = FollowedSigner(signing(tmp_path, GOOD), clock=lambda: now[0])

    def serial() -> str:
        found = manifest_of(signer.sign(file_of("png"), "image/png", ORIGIN), "image/png")
        return str(found["signature_info"]["cert_serial_number"])

    first = serial()
    expires_at = REGISTRY.get_sample_value("predictors_c2pa_certificate_expiry_timestamp_seconds")
    assert expires_at == pytest.approx((NOW + timedelta(days=30)).timestamp(), abs=1)
    renewed = AUTHORITY.issue_signer()
    signing(tmp_path, renewed)
    now[0] += LOOK_S / 2
    assert serial() == first
    now[0] += LOOK_S / 2
    second = serial()
    assert second != first
    for bad in (Pair(b"", b""), Pair(GOOD.cert, renewed.key), AUTHORITY.issue_signer(days=-1)):
        signing(tmp_path, bad)
        now[0] += LOOK_S
        assert serial() == second
    assert caplog.text.count("what was read before stays") == 3
    signing(tmp_path, GOOD)
    now[0] += LOOK_S
    assert serial() == first


def test_a_fault_while_reading_renewed_files_is_forgotten_once_it_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("c2pa")
    now = [0.0]
    signer = FollowedSigner(signing(tmp_path, GOOD), clock=lambda: now[0])
    first = signer._signer
    signing(tmp_path, AUTHORITY.issue_signer())
    made, failures = content_credentials._tried_signer, [OSError("passing"), OSError("passing")]

    def failing(files: tuple[bytes, bytes]) -> ContentSigner:
        if failures:
            raise failures.pop()
        return made(files)

    monkeypatch.setattr(content_credentials, "_tried_signer", failing)
    for left in (1, 0):
        now[0] += LOOK_S
        signer.sign(file_of("png"), "image/png", ORIGIN)
        assert signer._signer is first
        assert len(failures) == left
    assert caplog.text.count("what was read before stays") == 1
    now[0] += LOOK_S
    signer.sign(file_of("png"), "image/png", ORIGIN)
    assert signer._signer is not first


# -- refused starts --------------------------------------------------------------------------------
BAD: dict[str, tuple[Pair, str]] = {
    "no certificate": (Pair(b"hello", GOOD.key), f"{CERT} has no certificate as PEM"),
    "empty": (Pair(b"", GOOD.key), f"the file of {CERT} is empty"),
    "no key": (Pair(GOOD.cert, b"hello"), f"{KEY} has no private key as PEM"),
    "another's key": (
        Pair(GOOD.cert, AUTHORITY.issue_signer().key),
        f"the key in {KEY} does not belong to the certificate in {CERT}",
    ),
    "a password": (
        Pair(GOOD.cert, key_pem(ec.generate_private_key(ec.SECP256R1()), b"secret")),
        f"{KEY} has a password",
    ),
    "expired": (AUTHORITY.issue_signer(days=-1), f"the certificate in {CERT} is valid from"),
    "of TLS": (
        AUTHORITY.issue_signer(usage=ExtendedKeyUsageOID.SERVER_AUTH),
        f"the certificate in {CERT} can't sign",
    ),
    "of no use": (AUTHORITY.issue_signer(usage=None), f"the certificate in {CERT} can't sign"),
    "of pki": (AUTHORITY.issue(), f"the certificate in {CERT} can't sign"),
    "a curve": (
        AUTHORITY.issue_signer(ec.generate_private_key(ec.SECP256K1())),
        f"the key in {KEY} is of a kind that can't sign",
    ),
    "a short key": (
        AUTHORITY.issue_signer(rsa.generate_private_key(65537, 1024)),
        f"the key in {KEY} is of a kind that can't sign",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_cannot_sign_are_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    pytest.importorskip("c2pa")
    pair, message = BAD[name]
    with pytest.raises(InvalidSetting) as refusal:
        make_signer(signing(tmp_path, pair))
    assert refusal.value.message.startswith(message)
    assert str(tmp_path) not in refusal.value.message


def test_a_certificate_whose_time_has_not_come_is_refused(tmp_path: Path) -> None:
    from predictors.protocol.content_credentials import _check_time

    [cert] = _certificates(GOOD)
    with pytest.raises(InvalidSetting, match="is valid from"):
        _check_time(cert, datetime.now(UTC) - timedelta(days=365))


def _certificates(pair: Pair) -> list[Any]:
    from cryptography.x509 import load_pem_x509_certificates

    return load_pem_x509_certificates(pair.cert)[:1]


def test_settings_that_disagree_are_refused(tmp_path: Path) -> None:
    whole = signing(tmp_path, GOOD)
    cert, key = whole.c2pa_cert_file, whole.c2pa_key_file
    for settings, message in (
        (FluxSettings(provenance="c2pa", c2pa_key_file=key), f"{CERT} is not set"),
        (FluxSettings(provenance="c2pa", c2pa_cert_file=cert), f"{KEY} is not set"),
        (FluxSettings(c2pa_cert_file=cert), f"{CERT} is set, but PREDICTORS_FLUX_PROVENANCE is x"),
        (FluxSettings(provenance="none", c2pa_key_file=key), "PREDICTORS_FLUX_PROVENANCE is none"),
        (
            FluxSettings(provenance="c2pa", c2pa_cert_file=cert, c2pa_key_file="/nowhere"),
            "read: No",
        ),
    ):
        with pytest.raises(InvalidSetting, match=message):
            make_signer(settings)
    assert make_signer(FluxSettings()) is None
    assert make_signer(FluxSettings(provenance="none")) is None


def test_without_the_extra_the_start_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)  # as if it were not installed
    with pytest.raises(InvalidSetting, match=r"pip install vision-predictors\[c2pa\]"):
        make_signer(signing(tmp_path, GOOD))
