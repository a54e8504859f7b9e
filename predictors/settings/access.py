"""Settings of access: API keys, and how callers are told apart."""

from __future__ import annotations

from dataclasses import dataclass

from predictors.settings.bounds import SettingsGroup, bounded


@dataclass(frozen=True, slots=True)
class AccessSettings(SettingsGroup):
    """API keys, and how callers are told apart. Callers share the engines fairly."""

    section = "access"

    keys_file: str = ""
    """JSON file with the API keys' hashes, names and limits, as `predictors keys` writes
    it. Every data route then needs a key. Empty: no keys."""
    reload_s: float = bounded(5.0, least=0.05)
    """The keys file is looked at this often, in seconds, and read again where it has changed. One
    that can't be used is logged, and the old keys stay in use."""
    open: bool = False
    """Serves without keys on an address that is not loopback. The image and the chart set it. With
    neither this nor keys the server does not start there. Beside keys it has no effect."""
    metrics_key: bool = False
    """Asks for a key on `/metrics` of the data port too. Its series have the keys' names."""
    caller_header: str = ""
    """Header (REST) or metadata (gRPC) in which a gateway names the caller, such as
    `x-consumer-name`. The gateway must overwrite what clients send. It is believed from
    `trusted_proxies` only, where those are set. Empty, or where a request lacks it: callers are
    told apart by address. The name of a key comes before it."""
    trusted_proxies: str = ""
    """Addresses or networks of proxies, comma-separated, as `10.0.0.0/8, fd00::/8`. The caller's
    address is then the rightmost of `X-Forwarded-For` that is none of them. Empty: it is the
    address of the connection."""
