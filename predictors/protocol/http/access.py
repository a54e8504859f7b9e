"""Protects a server without passwords from web pages that a user visits, by the `Origin` and `Host`
headers.

A browser names the page that makes a request in `Origin`, and a page of another origin is refused
unless the operator has listed its origin: then it may call every data route and read the answers
(CORS). Cookies and other credentials are never asked for. DNS rebinding lets a page point its own
origin here, so a `Host` that does not belong to this machine is refused too: always on loopback,
elsewhere once the operator has listed the allowed names. Probes and `/metrics` are exempt, since
kubelet and Prometheus ask by address and nothing there is secret. No page of another origin can
read those.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence

from predictors.errors import Forbidden, Misdirected
from predictors.protocol.addresses import is_loopback
from predictors.protocol.names import ModelNameConvertor
from predictors.settings import InvalidSetting, Settings

_OPEN = re.compile(
    r"/|(?:/health|/metrics|/v2/health/live|/v2/health/ready"
    rf"|/v2/models/{ModelNameConvertor.regex}(?:/versions/[^/]+)?/ready)/?"
)
# a picture's address holds 192 random bits and is fetched by browsers, which send no key
_PICTURE = re.compile(r"(?:/openai)?/v1/images/files/[^/]+/?")
# pages for people: a browser sends no key for them, and they hold nothing but this package's files
_PAGE = re.compile(r"/(?:docs|playground)(?:/[^/]*)?")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::([0-9]{0,5}))?")
_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31})://(.+)")
_PATTERN = re.compile(r"(?:\*\.)?[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_PORTS = {"http": 80, "https": 443}
_MAX_KNOWN = 64  # cached spellings of `Host` that are allowed
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_HEADER_NAMES = re.compile(rf"{_TOKEN}(?:[ \t]*+,[ \t]*+{_TOKEN})*+")
_MAX_HEADER_NAMES = 1024  # characters

PREFLIGHT_S = 7200  # a browser remembers a preflight for so long; none does for longer
_VARY = (b"vary", b"origin")
_EXPOSED = (
    b"access-control-expose-headers",
    b"x-request-id, retry-after, x-should-retry, inference-header-content-length",
)
RawHeaders = tuple[tuple[bytes, bytes], ...]
Origin = tuple[str, str, int]  # scheme, host, port

FOREIGN = "pages of another origin may not call this server"
UNKNOWN_HOST = (
    "this server does not answer under the request's Host; "
    "the operator can allow it with PREDICTORS_SERVER_ALLOWED_HOSTS"
)


class AccessPolicy:
    """The policy of one port, bound to `address`. Event loop only.

    `allowed` is the setting with allowed host names, `origins` the one with those of pages. With
    `pages=False` no web page may call, not even one of the same origin.
    """

    def __init__(
        self, address: str, allowed: str = "", *, origins: str = "", pages: bool = True
    ) -> None:
        self._pages = pages
        self._origins = _read_origins(origins)
        self._any_origin = origins.strip() == "*"
        self._allowed = _read(allowed)
        is_checked = bool(self._allowed) or is_loopback(_name(address.strip("[]")))
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
            if not self._pages or len(origins) != 1:
                return Forbidden(FOREIGN)
            origin = headers["origin"]
            if not _is_same(origin, host) and not self.is_listed(origin):
                return Forbidden(FOREIGN)
        return None

    def is_listed(self, origin: str) -> bool:
        """The operator lets pages of this origin call."""
        return self._any_origin or (bool(self._origins) and _origin(origin) in self._origins)

    def shared_headers(self, headers: Mapping[str, str], path: str) -> RawHeaders:
        """Headers of a response that let the page which asked read it, where its origin is listed.
        The request must not have been refused."""
        if not (self._origins or self._any_origin) or _OPEN.fullmatch(path):
            return ()
        origin = headers.get("origin")
        if origin is None or not self.is_listed(origin):
            return (_VARY,)
        shown = b"*" if self._any_origin else origin.encode("latin-1")
        return ((b"access-control-allow-origin", shown), _EXPOSED, _VARY)

    def _is_allowed_host(self, host: str) -> bool:
        found = _AUTHORITY.fullmatch(host)
        if found is None or not self._is_allowed_name(_name(found[1])):
            return False
        if len(self._known) < _MAX_KNOWN:
            self._known.add(host)
        return True

    def _is_allowed_name(self, name: str) -> bool:
        if is_loopback(name) or name in self._allowed:  # as through a port-forward
            return True
        _, dot, parent = name.partition(".")
        while dot:
            if f"*.{parent}" in self._allowed:
                return True
            _, dot, parent = parent.partition(".")
        return False


def is_open(path: str) -> bool:
    """The route of a probe or of `/metrics`, which any page and any host may ask for."""
    return _OPEN.fullmatch(path) is not None


def needs_key(path: str, *, asks_metrics: bool = False) -> bool:
    """Requests for this path need an API key where there are any: all but probes, `/metrics` unless
    the operator asks for one there, pictures that are known by their secret address, and the files
    of pages for people."""
    if _OPEN.fullmatch(path):
        return asks_metrics and path.startswith("/metrics")
    return _PICTURE.fullmatch(path) is None and _PAGE.fullmatch(path) is None


def check_addresses(settings: Settings) -> bool:
    """True if callers without a key may reach the server from other machines, as the operator has
    allowed. Raises `InvalidSetting` where that was not allowed."""
    own, access = settings.server, settings.access
    has_open_admin = own.admin_port >= 0 and _is_open_to_others(own.admin_host)
    if has_open_admin and not access.open:
        raise InvalidSetting(
            f"the admin port has no keys and would listen on {own.admin_host!r}, where others can "
            "reach it; set PREDICTORS_SERVER_ADMIN_HOST=127.0.0.1 (port-forwards reach it), or "
            "PREDICTORS_ACCESS_OPEN=true if the network keeps others out"
        )
    if access.keys_file or not _is_open_to_others(own.host):
        return has_open_admin
    if not access.open:
        raise InvalidSetting(
            f"HOST is {own.host!r}, where others can reach the server, and there are no API keys; "
            "make some with `predictors keys add NAME --file FILE` and set "
            "PREDICTORS_ACCESS_KEYS_FILE=FILE, or set PREDICTORS_ACCESS_OPEN=true if the network "
            "or a gateway keeps others out, or HOST=127.0.0.1"
        )
    return True


def is_offered(choice: str, settings: Settings) -> bool:
    """The meaning of `auto`, `on` and `off` for what people look at: `auto` is on where the server
    listens on this machine alone and needs no API key."""
    if choice != "auto":
        return choice == "on"
    return not settings.access.keys_file and not _is_open_to_others(settings.server.host)


def _is_open_to_others(host: str) -> bool:
    return not is_loopback(_name(host.strip("[]")))


def _read(allowed: str) -> frozenset[str]:
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    for name in names:
        if name != "*" and not _PATTERN.fullmatch(name):
            raise InvalidSetting(
                "PREDICTORS_SERVER_ALLOWED_HOSTS must be names without ports, `*.` before one for "
                f"all below it, or `*` for any, comma-separated; {name[:64]!r} is none"
            )
    return frozenset(_name(name) for name in names)


def preflight_headers(methods: Iterable[str], asked: str) -> list[tuple[str, str]]:
    """Headers of the answer to a preflight from a listed origin. `asked` names the headers that
    the page wants to send; all of them are allowed, since none gives it a right."""
    found = [
        ("access-control-allow-methods", ", ".join(sorted(methods))),
        ("access-control-max-age", str(PREFLIGHT_S)),
        ("vary", "access-control-request-headers"),
    ]
    if len(asked) <= _MAX_HEADER_NAMES and _HEADER_NAMES.fullmatch(asked):
        found.append(("access-control-allow-headers", asked))
    return found


def _read_origins(text: str) -> frozenset[Origin]:
    if text.strip() == "*":
        return frozenset()
    found = set()
    for entry in filter(None, map(str.strip, text.split(","))):
        origin = _origin(entry)
        if origin is None:
            raise InvalidSetting(
                "PREDICTORS_SERVER_ALLOWED_ORIGINS must be origins such as https://app.example.com "
                "or http://localhost:3000, without a path, comma-separated, or `*` alone for any; "
                f"{entry[:64]!r} is none"
            )
        found.add(origin)
    return frozenset(found)


def _origin(text: str) -> Origin | None:
    parts = _ORIGIN.fullmatch(text)
    if parts is None:
        return None
    scheme = parts[1].lower()
    authority = _authority(parts[2], _PORTS.get(scheme, 0))
    return authority and (scheme, *authority)


def _is_same(origin: str, host: str) -> bool:
    """A page of `origin` was served under `host`; the scheme may differ, a proxy may end TLS."""
    theirs = _origin(origin)
    if theirs is None or theirs[0] not in _PORTS:
        return False
    return theirs[1:] == _authority(host, _PORTS[theirs[0]])


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
