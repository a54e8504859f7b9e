"""Names the caller of each request: by the header of a gateway, else by address."""

from __future__ import annotations

import re

from predictors.protocol.addresses import (
    FORWARDED_HEADER,
    account_of,
    forwarded_address,
    is_trusted,
    parse_address,
    read_networks,
)
from predictors.protocol.call import Call
from predictors.settings import AccessSettings, InvalidSetting

MAX_CALLER = 128  # characters of a name that a header gives

_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]{1,64}")
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "x-api-key", "cookie"})


class CallerNames:
    """Fills in `Call.address` and `Call.caller`. Event loop only."""

    def __init__(self, settings: AccessSettings) -> None:
        """Raises `InvalidSetting`."""
        self._trusted = read_networks(settings.trusted_proxies)
        self._header = settings.caller_header.strip().lower()
        if self._header and not _HEADER.fullmatch(self._header):
            raise InvalidSetting(
                "PREDICTORS_ACCESS_CALLER_HEADER must be the name of a header, not "
                f"{self._header[:64]!r}"
            )
        if self._header in SECRET_HEADERS:
            raise InvalidSetting(
                "PREDICTORS_ACCESS_CALLER_HEADER names a header that holds secrets; a caller's "
                "name is written to the log: let the gateway write it into a header of its own"
            )

    def name(self, call: Call, peer: str) -> None:
        """Name the caller of a request that came from the address `peer`."""
        call.address = peer
        if self._trusted:
            call.address = forwarded_address(peer, call.get(FORWARDED_HEADER, ""), self._trusted)
        named = self._named_by_gateway(call, peer) if self._header else ""
        call.caller = named or account_of(call.address)

    def _named_by_gateway(self, call: Call, peer: str) -> str:
        if self._trusted:
            address = parse_address(peer)
            if address is None or not is_trusted(address, self._trusted):
                return ""
        name = call.get(self._header, "").strip(" \t")
        is_clean = len(name) <= MAX_CALLER and name.isascii() and name.isprintable()
        return name if is_clean else ""
