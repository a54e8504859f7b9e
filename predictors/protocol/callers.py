"""Names the caller of each request: by its API key, else a gateway's header, else its address."""

from __future__ import annotations

import asyncio
import re

from predictors.errors import Unauthorized
from predictors.protocol.addresses import (
    FORWARDED_HEADER,
    account_of,
    forwarded_address,
    is_trusted,
    parse_address,
    read_networks,
)
from predictors.protocol.call import Call
from predictors.protocol.http.access import needs_key
from predictors.protocol.key_file import ApiKey
from predictors.protocol.key_usage import KeyUsages
from predictors.protocol.keys import ApiKeys, KeysFile, note_loaded
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


class Callers:
    """The callers of one server, and their keys if it has any. Event loop only."""

    def __init__(self, settings: AccessSettings) -> None:
        """Reads the keys file, if there is one. Raises `InvalidSetting`."""
        self.name = CallerNames(settings).name
        """Fills in the address and the name of a caller without a key."""
        self._asks_metrics = settings.metrics_key
        self._file = KeysFile(settings) if settings.keys_file else None
        self.keys: ApiKeys | None = None
        """None where no key is needed."""
        self._following: asyncio.Task[None] | None = None
        if self._file is not None:
            self.keys = ApiKeys(self._file.read())
            self._usages = KeyUsages()
            self._usages.update(self.keys.keys)
            note_loaded(self.keys.keys)

    def refusal(self, call: Call, path: str) -> Unauthorized | None:
        """The error to refuse an HTTP request with, or None: it needs no key, or is the call of a
        valid one from now on."""
        if self.keys is None or not needs_key(path, asks_metrics=self._asks_metrics):
            return None
        try:
            key = self.keys.check(call)
        except Unauthorized as error:
            return error
        self.adopt(call, key)
        return None

    def adopt(self, call: Call, key: ApiKey) -> None:
        """Make the call that of a key in use."""
        call.caller, call.weight, call.models = key.name, key.weight, key.models
        call.usage = self._usages.of(key)

    def start(self) -> None:
        """Begin to follow the keys file, if there is one."""
        if self._file is not None and self.keys is not None:
            keys = self.keys
            follow = self._file.follow(keys, lambda: self._usages.update(keys.keys))
            self._following = asyncio.create_task(follow)

    async def stop(self) -> None:
        """Follow the keys file no more."""
        if self._following is not None:
            self._following.cancel()
            self._following = None
