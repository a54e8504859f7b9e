"""Pictures that are answered by address (`response_format: url`) and fetched from the same server.

They are held in memory, in this process alone: for a while, and as many as a setting allows. The
address is the only thing that protects a picture, so it can't be guessed and is not logged.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from predictors.errors import Gone, InvalidRequest, NotFound, TooLarge
from predictors.protocol.http.responses import Response
from predictors.settings import InvalidSetting, ServerSettings

ROUTE = "/images/files"
MAX_FILES = 4096
TOKEN_BYTES = 24  # 192 random bits
_BASE = re.compile(r"https?://[A-Za-z0-9.\-_\[\]:]{1,300}(?:/[A-Za-z0-9.\-_~/]{0,300})?")
_OFF = (
    "pictures have no address here, since this server has no address of its own (setting "
    "PREDICTORS_SERVER_PUBLIC_URL; with several replicas it must stay empty); ask for 'b64_json'"
)
EXPIRED = "the address has expired; draw the picture again or ask for 'b64_json'"
CROWDED_OUT = "the picture has made room for newer ones; draw it again or ask for 'b64_json'"


@dataclass(frozen=True, slots=True)
class HeldPicture:
    file: bytes
    kind: str
    """`png`, `jpeg` or `webp`."""
    expires_s: float
    """By the clock of `PictureFiles`."""
    provenance: str = "none"
    """The file's mark of origin, as the answer said it."""


class PictureFiles:
    """The pictures of one server by their secret names. Any thread."""

    def __init__(
        self, settings: ServerSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises `InvalidSetting` for a base address that is none."""
        base = settings.public_url
        if base and not _BASE.fullmatch(base):
            raise InvalidSetting(
                "PREDICTORS_SERVER_PUBLIC_URL must be http://HOST or https://HOST, with a port and "
                f"a path if need be, not {base[:64]!r}"
            )
        self._base = base.rstrip("/")
        self.lifetime_s = settings.picture_url_s
        self._max_bytes = settings.picture_url_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._held: OrderedDict[str, HeldPicture] = OrderedDict()
        self._num_bytes = 0
        self._gone: OrderedDict[str, str] = OrderedDict()
        """Why recent names are not held any more."""

    def check_offered(self) -> None:
        """Raise `InvalidRequest` where addresses are off."""
        if not self._base:
            name = "response_format"
            raise InvalidRequest(f"{name} 'url' is not supported: {_OFF}", param=name)

    def put(self, files: Sequence[bytes], kind: str, provenance: str = "none") -> list[str]:
        """The addresses of the files, which are held from now on.

        Raises `TooLarge` for more bytes than are ever held.
        """
        total = sum(map(len, files))
        if total > self._max_bytes:
            raise TooLarge(
                f"the pictures have {total} bytes; at most {self._max_bytes} are held for their "
                "addresses: ask for fewer or smaller ones, or for 'b64_json'",
                param="response_format",
            )
        names = [f"{secrets.token_urlsafe(TOKEN_BYTES)}.{kind}" for _ in files]
        with self._lock:
            self._drop_expired()
            expires_s = self._clock() + self.lifetime_s
            for name, file in zip(names, files, strict=True):
                self._held[name] = HeldPicture(file, kind, expires_s, provenance)
            self._num_bytes += total
            while self._num_bytes > self._max_bytes or len(self._held) > MAX_FILES:
                self._drop_oldest(CROWDED_OUT)
        return [f"{self._base}/v1{ROUTE}/{name}" for name in names]

    def get(self, name: str) -> HeldPicture:
        """Raises `Gone` for a picture that was held and is not any more, `NotFound` for any other
        name."""
        with self._lock:
            self._drop_expired()
            found = self._held.get(name)
            reason = self._gone.get(name)
        if found is not None:
            return found
        if reason is not None:
            raise Gone(reason)
        raise NotFound(
            "there is no picture under this address: it never was one, expired long ago, or was "
            "given by another process"
        )

    def drop_expired(self) -> None:
        with self._lock:
            self._drop_expired()

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._held and next(iter(self._held.values())).expires_s <= now:
            self._drop_oldest(EXPIRED)

    def _drop_oldest(self, reason: str) -> None:
        name, picture = self._held.popitem(last=False)
        self._num_bytes -= len(picture.file)
        self._gone[name] = reason
        if len(self._gone) > MAX_FILES:
            self._gone.popitem(last=False)


def file_response(picture: HeldPicture) -> Response:
    """The file as it was drawn; no cache may keep it."""
    headers = (
        ("content-type", f"image/{picture.kind}"),
        ("cache-control", "private, no-store"),
        ("content-disposition", f'inline; filename="picture.{picture.kind}"'),
        ("x-content-type-options", "nosniff"),
        ("provenance", picture.provenance),
    )
    return Response(picture.file, headers=headers)
