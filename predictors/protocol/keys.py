"""API keys in use: which key a request presents, and reloading of their file.

A presented key is hashed, and its hash compared with that of every key in constant time, so that
the work is the same for a right key, a wrong one and one that is almost right. SHA-256 suffices
for keys of 256 random bits, and a flood of wrong keys costs microseconds each.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path

from predictors import metrics
from predictors.errors import Unauthorized
from predictors.protocol.key_file import MAX_FILE_BYTES, ApiKey, digest_of, read_keys
from predictors.protocol.mounted_files import read_mounted
from predictors.protocol.outcomes import result_or_error
from predictors.settings import AccessSettings, InvalidSetting

log = logging.getLogger(__name__)

KEY_HEADERS = ("x-api-key", "authorization")
"""Where a key is looked for, in this order."""

MISSING = (
    "an API key is needed: send it as `Authorization: Bearer KEY` or `x-api-key: KEY` "
    "(gRPC: as metadata)"
)
UNKNOWN = "the API key is not valid here"
EXPIRED = "the API key has expired; ask the operator for a new one"
_BEARER = "bearer "


class ApiKeys:
    """The keys in use. Event loop only."""

    def __init__(self, keys: Sequence[ApiKey], clock: Callable[[], float] = time.time) -> None:
        self._keys = tuple(keys)
        self._clock = clock
        self.comparisons = 0
        """Digests compared since the start."""

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        return self._keys

    def replace(self, keys: Sequence[ApiKey]) -> None:
        """Use these keys from now on; requests that were let in stay."""
        self._keys = tuple(keys)

    def find(self, presented: str) -> ApiKey | None:
        """The key that is presented, expired or not. Compares with all of them, always."""
        digest, found = digest_of(presented), None
        for key in self._keys:
            self.comparisons += 1
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    def check(self, headers: MutableMapping[str, str]) -> ApiKey:
        """The valid key of these headers, from which it is taken out, so that nothing that comes
        after can log it. Raises `Unauthorized`."""
        presented = _take_key(headers)
        key = self.find(presented) if presented else None
        if key is None:
            reason, message = ("unknown", UNKNOWN) if presented else ("missing", MISSING)
        elif key.expires <= self._clock():
            reason, message = "expired", EXPIRED
        else:
            return key
        metrics.refused_keys_total.labels(reason).inc()
        raise Unauthorized(message)


def _take_key(headers: MutableMapping[str, str]) -> str:
    """The key in `x-api-key`, else the bearer token; empty without one."""
    own, scheme = (headers.pop(name, "").strip(" \t") for name in KEY_HEADERS)
    if own:
        return own
    is_bearer = scheme[: len(_BEARER)].lower() == _BEARER
    return scheme[len(_BEARER) :].strip(" \t") if is_bearer else ""


class KeysFile:
    """The file of the keys, and the state in which it was read last."""

    def __init__(self, settings: AccessSettings) -> None:
        self._path = Path(settings.keys_file)
        self._interval_s = settings.reload_s
        self._seen: tuple[int, ...] = ()

    def read(self) -> tuple[ApiKey, ...]:
        """The keys. Blocks. Raises `InvalidSetting`."""
        try:
            # the state before the content: a later change makes a difference to the next look
            raw, found = read_mounted(self._path, MAX_FILE_BYTES + 1)
        except OSError as error:
            self._seen = self._find_state()
            raise InvalidSetting(
                f"the file of PREDICTORS_ACCESS_KEYS_FILE can't be read: {error.strerror}"
            ) from error
        self._seen = _state(found)
        return read_keys(raw)

    def has_changed(self) -> bool:
        """The file is another than that read last, or has other content. Follows symbolic links,
        which is how Kubernetes swaps a mounted Secret. Blocks."""
        return self._find_state() != self._seen

    async def follow(self, keys: ApiKeys, on_change: Callable[[], object]) -> None:
        """Keep `keys` as the file says, until cancelled. A file that can't be used is logged, and
        the old keys stay."""
        while True:
            await asyncio.sleep(self._interval_s)
            if await asyncio.to_thread(self.has_changed):
                error = await result_or_error(self._reload(keys, on_change))
                if error is not None:  # a bug must not end the following: keys are revoked by it
                    metrics.keys_reload_success.set(0)
                    log.error("the API keys were not reloaded, the old ones stay", exc_info=error)

    async def _reload(self, keys: ApiKeys, on_change: Callable[[], object]) -> None:
        try:
            found = await asyncio.to_thread(self.read)
        except InvalidSetting as error:
            metrics.keys_reload_success.set(0)
            log.error("the API keys were not reloaded, the old ones stay: %s", error.message)
            return
        keys.replace(found)
        on_change()  # before the next request, which may present one of them
        note_loaded(found)
        log.info("reloaded %d API keys", len(found))

    def _find_state(self) -> tuple[int, ...]:
        try:
            return _state(self._path.stat())
        except OSError:
            return ()


def note_loaded(keys: Sequence[ApiKey]) -> None:
    """Report keys that are in use from now on."""
    metrics.keys_loaded.set(len(keys))
    metrics.keys_reload_success.set(1)
    metrics.keys_reload_timestamp_seconds.set(time.time())


def _state(found: os.stat_result) -> tuple[int, ...]:
    # changes of rights alone move ctime alone
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
