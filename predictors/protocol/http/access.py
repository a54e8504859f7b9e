"""Protects a server without passwords from web pages that a user visits, by the `Origin` and `Host`
headers.

A browser names the page that makes a request in `Origin`, and a page of another origin is always
refused. DNS rebinding lets a page point its own origin here, so a `Host` that does not belong to
this machine is refused too: always on loopback, elsewhere once the operator has listed the allowed
names. Probes and `/metrics` are exempt, since kubelet and Prometheus ask by address and nothing
there is secret.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence

from predictors.errors import Forbidden, Misdirected
from predictors.settings import InvalidSetting

_OPEN = re.compile(
    r"/|(?:/metrics|/v2/health/live|/v2/health/ready|/v2/models/[^/]+(?:/versions/[^/]+)?/ready)/?"
)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::([0-9]{0,5}))?")
_ORIGIN = re.compile(r"(https?)://(.+)", re.IGNORECASE)
_PATTERN = re.compile(r"(?:\*\.)?[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_PORTS = {"http": 80, "https": 443}
_MAX_KNOWN = 64  # cached spellings of `Host` that are allowed

FOREIGN = "pages of another origin may not call this server"
UNKNOWN_HOST = (
    "this server does not answer under the request's Host; "
    "the operator can allow it with PREDICTORS_SERVER_ALLOWED_HOSTS"
)


class AccessPolicy:
    """The policy of one port, bound to `address`. Event loop only.

    `allowed` is the setting with allowed host names. With `pages=False` no web page may call, not
    even one of the same origin.
    """

    def __init__(self, address: str, allowed: str = "", *, pages: bool = True) -> None:
        self._pages = pages
        self._allowed = _read(allowed)
        is_checked = bool(self._allowed) or _is_loopback(_name(address.strip("[]")))
        self._checks_host = is_checked and "*" not in self._allowed
        self._known = {""}  # HTTP/1.0 needs no Host; a browser always sends one

    def refusal(
        self, headers: Mapping[str, str], raw: Sequence[tuple[bytes, bytes]], path: str
    ) -> Forbidden | None:
        """The error to refuse the request with, or None. `raw`: the same headers, unmerged."""
        has_origin, host = "origin" in headers, headers.get("host", "")
        is_known = not self._checks_host or host in self._known
        if (is_known and not has_origin) or _OPEN.fullmatch(path):
            return None
        if not is_known and not self._is_allowed_host(host):
            return Misdirected(UNKNOWN_HOST)
        if has_origin:
            origins = [value for name, value in raw if name == b"origin"]
            if not self._pages or len(origins) != 1 or not _is_same(headers["origin"], host):
                return Forbidden(FOREIGN)
        return None

    def _is_allowed_host(self, host: str) -> bool:
        found = _AUTHORITY.fullmatch(host)
        if found is None or not self._is_allowed_name(_name(found[1])):
            return False
        if len(self._known) < _MAX_KNOWN:
            self._known.add(host)
        return True

    def _is_allowed_name(self, name: str) -> bool:
        if _is_loopback(name) or name in self._allowed:  # as through a port-forward
            return True
        _, dot, parent = name.partition(".")
        while dot:
            if f"*.{parent}" in self._allowed:
                return True
            _, dot, parent = parent.partition(".")
        return False


def _read(allowed: str) -> frozenset[str]:
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    for name in names:
        if name != "*" and not _PATTERN.fullmatch(name):
            raise InvalidSetting(
                "PREDICTORS_SERVER_ALLOWED_HOSTS must be names without ports, `*.` before one for "
                f"all below it, or `*` for any, comma-separated; {name[:64]!r} is none"
            )
    return frozenset(_name(name) for name in names)


def _is_same(origin: str, host: str) -> bool:
    """A page of `origin` was served under `host`; the scheme may differ, a proxy may end TLS."""
    parts = _ORIGIN.fullmatch(origin)
    if parts is None:
        return False
    default = _PORTS[parts[1].lower()]
    theirs, ours = _authority(parts[2], default), _authority(host, default)
    return theirs is not None and theirs == ours


def _authority(text: str, default_port: int) -> tuple[str, int] | None:
    found = _AUTHORITY.fullmatch(text)
    return found and (_name(found[1]), int(found[2] or default_port))


def _name(text: str) -> str:
    """Normalise a host name or address to one spelling."""
    name = text.strip("[]").lower()
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.removesuffix(".")


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
