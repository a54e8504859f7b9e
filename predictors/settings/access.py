"""Settings of access: who may call, and how callers are told apart."""

from __future__ import annotations

from dataclasses import dataclass

from predictors.settings.bounds import SettingsGroup


@dataclass(frozen=True, slots=True)
class AccessSettings(SettingsGroup):
    """API keys, and how callers are told apart. Callers share the engines fairly."""

    section = "access"

    open: bool = False
    """Serves without keys on an address that is not loopback. The image and the chart set it. With
    neither this nor keys the server does not start there."""
    caller_header: str = ""
    """Header (REST) or metadata (gRPC) in which a gateway names the caller, such as
    `x-consumer-name`. The gateway must overwrite what clients send. It is believed from
    `trusted_proxies` only, where those are set. Empty, or where a request lacks it: callers are
    told apart by address."""
    trusted_proxies: str = ""
    """Addresses or networks of proxies, comma-separated, as `10.0.0.0/8, fd00::/8`. The caller's
    address is then the rightmost of `X-Forwarded-For` that is none of them. Empty: it is the
    address of the connection."""
