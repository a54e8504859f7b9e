"""A certificate and its private key in files of the operator, read and checked.

Messages name the setting of a file and what is wrong with it, never its path or content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from predictors.protocol.mounted_files import read_mounted
from predictors.settings import InvalidSetting

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

MAX_FILE_BYTES = 2**20


def read_pem(name: str, path: str) -> bytes:
    """The file of the setting `name`. Raises `InvalidSetting` if it can't be read, is empty or has
    more than a MiB."""
    try:
        raw, _ = read_mounted(path, MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidSetting(f"the file of {name} can't be read: {error.strerror}") from error
    if not raw:
        raise InvalidSetting(f"the file of {name} is empty")
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidSetting(f"the file of {name} has more than {MAX_FILE_BYTES} bytes")
    return raw


def load_pair(
    cert_name: str, chain: bytes, key_name: str, key: bytes
) -> tuple[Certificate, PrivateKeyTypes]:
    """The first certificate of a chain and its key. Raises `InvalidSetting` for content that can't
    be used, and for a key of another certificate."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import InvalidVersion, load_pem_x509_certificates

    try:
        [cert, *_] = load_pem_x509_certificates(chain)
        public_key = cert.public_key()
    except (ValueError, UnsupportedAlgorithm, InvalidVersion) as error:
        raise InvalidSetting(f"{cert_name} has no certificate as PEM that can be used") from error
    try:
        found = load_pem_private_key(key, None)
    except TypeError as error:
        raise InvalidSetting(f"{key_name} has a password; give a key without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidSetting(f"{key_name} has no private key as PEM") from error
    if public_key != found.public_key():
        message = f"the key in {key_name} does not belong to the certificate in {cert_name}"
        raise InvalidSetting(message)
    return cert, found
