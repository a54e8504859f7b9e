"""Which web pages may call over HTTP, and by which names: a server without passwords is protected
from web pages that somebody visits on the same machine. Probes and metrics are exempt.

A browser says which page asks in `Origin`, and whose server it believes to be asking in `Host`. A
page of another origin is refused whatever it sends. A name that does not belong to this machine is
how a page gets its own origin to point here (DNS rebinding): it is refused where this server
listens on loopback only, and elsewhere once the operator has named the right ones. Probes and
`/metrics` answer everybody: kubelet and Prometheus ask by address, and nothing there is secret.
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
_MAX_KNOWN = 64  # spellings of `Host` that were found right and are not looked at again

FOREIGN = "pages of another origin may not call this server"
UNKNOWN_HOST = (
    "this server does not answer under the request's Host; "
    "the operator can allow it with PREDICTORS_SERVER_ALLOWED_HOSTS"
)


class AccessPolicy:
    """The rule of one port, which binds `address`. `allowed` are the setting's names; without
    `pages` no page may ask, not even one of the same origin. Event loop only.
    """

    def __init__(self, address: str, allowed: str = "", *, pages: bool = True) -> None:
        self._pages = pages
        self._allowed = _read(allowed)
        is_checked = bool(self._allowed) or _is_loopback(_name(address.strip("[]")))
        self._checks_host = is_checked and "*" not in self._allowed
        self._known = {""}  # HTTP/1.0 has no Host, and a browser always one

    def refusal(
        self, headers: Mapping[str, str], raw: Sequence[tuple[bytes, bytes]], path: str
    ) -> Forbidden | None:
        """The error to refuse the request with, or None. `raw`: the same headers, none merged."""
        has_origin, host = "origin" in headers, headers.get("host", "")
        is_known = not self._checks_host or host in self._known
        if (is_known and not has_origin) or _OPEN.fullmatch(path):
            return None
        if not is_known and not self._knows(host):
            return Misdirected(UNKNOWN_HOST)
        if has_origin:
            origins = [value for name, value in raw if name == b"origin"]
            if not self._pages or len(origins) != 1 or not _is_same(headers["origin"], host):
                return Forbidden(FOREIGN)
        return None

    def _knows(self, host: str) -> bool:
        found = _AUTHORITY.fullmatch(host)
        if found is None or not self._is_ours(_name(found[1])):
            return False
        if len(self._known) < _MAX_KNOWN:
            self._known.add(host)
        return True

    def _is_ours(self, name: str) -> bool:
        if _is_loopback(name) or name in self._allowed:  # by loopback a port-forward comes
            return True
        _, dot, parent = name.partition(".")
        while dot:
            if f"*.{parent}" in self._allowed:
                return True
            _, dot, parent = parent.partition(".")
        return False


def _read(allowed: str) -> frozenset[str]:
    """The names of the setting; raises `InvalidSetting`."""
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    for name in names:
        if name != "*" and not _PATTERN.fullmatch(name):
            raise InvalidSetting(
                "PREDICTORS_SERVER_ALLOWED_HOSTS must be names without ports, `*.` before one for "
                f"all below it, or `*` for any, comma-separated; {name[:64]!r} is none"
            )
    return frozenset(_name(name) for name in names)


def _is_same(origin: str, host: str) -> bool:
    """Whether a page of `origin` was served under `host`, with TLS ended before us or not."""
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
    """One spelling of a name or address."""
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
