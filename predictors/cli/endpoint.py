"""A server's address, the key for it, and its answers. Every failure is a `VerbFailed` with one
plain sentence.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from predictors.cli.event_reader import EventReader, read_object
from predictors.cli.outcomes import FAILED, NO_SERVER, REFUSED, VerbFailed

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE, KEY_VARIABLE = "PREDICTORS_URL", "PREDICTORS_KEY"
CONNECT_TIMEOUT_S = 10.0
OUR_NAME = "vision-predictors"
MAX_ERROR_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 512 * 2**20
MAX_SHOWN = 500
"""Characters of a server's own words."""
OLD_AUTHORITY = ("Key Identifier", "key usage extension")
"""In OpenSSL's words for certificates that only a strict client refuses."""
PLAIN_ANSWER = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "record layer failure")
"""OpenSSL's names for an answer that is no TLS, by its releases."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""All but line feed and tab: a terminal must not be driven by what a server writes."""


def plain(text: str) -> str:
    """`text` without control characters."""
    return CONTROLS.sub("", text)


def base_url(url: str) -> str:
    """The address without a final `/` or `/v1`. Raises `VerbFailed` for what is no HTTP address."""
    try:
        found = httpx.URL(url if "://" in url else f"http://{url}")
    except (httpx.InvalidURL, ValueError):
        found = httpx.URL("")
    if found.scheme not in {"http", "https"} or not found.host or (found.port or 0) > 65535:
        raise VerbFailed(f"{plain(url)[:200]!r} is no address such as {DEFAULT_URL}", REFUSED)
    if found.query or found.fragment:
        raise VerbFailed("an address of a server has neither ? nor #", REFUSED)
    path = found.path.rstrip("/")
    return str(found.copy_with(path=path.removesuffix("/v1").removesuffix("/openai") or "/"))


def request_headers(key: str) -> dict[str, str]:
    """The headers of every request. Raises `VerbFailed` for a key that is none."""
    if key and not re.fullmatch(r"[!-~]{1,4096}", key):
        raise VerbFailed("an API key has only printable ASCII characters, without spaces", REFUSED)
    return {"authorization": f"Bearer {key}"} if key else {}


def is_on_this_machine(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shown_address(url: str) -> str:
    """The address for messages, without a password."""
    found = httpx.URL(url)
    return str(found.copy_with(username=None, password=None)).rstrip("/")


class RemoteServer:
    """One server, for one thread. A context manager."""

    def __init__(self, url: str, key: str = "", timeout_s: float = 600.0) -> None:
        self.url = base_url(url)
        self._client = httpx.Client(
            base_url=self.url,
            headers=request_headers(key),
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
            trust_env=not is_on_this_machine(self.url),  # no proxy for this machine
        )

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> RemoteServer:
        """The server of `--url` and `--key`, or of the environment."""
        environ: Mapping[str, str] = arguments.environ
        url = arguments.url or environ.get(URL_VARIABLE) or DEFAULT_URL
        key = arguments.key or environ.get(KEY_VARIABLE, "")
        return cls(url, key, arguments.timeout)

    def __enter__(self) -> RemoteServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        with failures_of(self.url), self._client.stream("GET", path) as response:
            return read_object(read_answer(response))

    def status_of(self, path: str) -> int:
        """The status of an answer whose body does not matter."""
        with failures_of(self.url), self._client.stream("GET", path) as response:
            return response.status_code

    def find(self, path: str) -> dict[str, Any]:
        """As `get`, but an empty object where the server refuses or has nothing of the kind."""
        try:
            return self.get(path)
        except VerbFailed as failure:
            if failure.status:
                return {}
            raise

    def answers(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a stream, or the one object of an answer that is none."""
        head = {"content-type": "application/json"}
        content = json.dumps(body).encode()
        with (
            failures_of(self.url),
            self._client.stream("POST", path, content=content, headers=head) as response,
        ):
            kind = response.headers.get("content-type", "")
            if response.is_success and kind.startswith("text/event-stream"):
                yield from events_of(response.iter_bytes())
            else:
                yield read_object(read_answer(response))


def events_of(pieces: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The events in `pieces`; raises `VerbFailed` for one that is an error."""
    reader = EventReader()
    for piece in pieces:
        for event in reader.feed(piece):
            if event.get("error"):
                raise VerbFailed(f"the server gave up: {error_words(event)}", FAILED)
            yield event


def read_answer(response: httpx.Response) -> bytes:
    """The whole body. Raises `VerbFailed`, with the server's words for an error."""
    limit = MAX_ANSWER_BYTES if response.is_success else MAX_ERROR_BYTES
    content = bytearray()
    for piece in response.iter_bytes():
        content += piece
        if len(content) > limit:
            break
    if not response.is_success:
        raise refused_answer(response.status_code, response.url.path, bytes(content))
    if len(content) > limit:
        raise VerbFailed(f"the answer has more than {limit // 2**20} MiB", NO_SERVER)
    return bytes(content)


def refused_answer(status: int, path: str, content: bytes) -> VerbFailed:
    """The failure that an answer of another status is."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    words = error_words(found) if isinstance(found, dict) else ""
    said = f": {words}" if words else ""
    return VerbFailed(f"{plain(path)} is answered with {status}{said}", FAILED, status=status)


def error_words(body: Mapping[str, Any]) -> str:
    """The message of an error body of V2, OpenAI, vLLM or FastAPI; empty if there is none."""
    found: Any = body
    for name in ("error", "message", "detail", "msg"):
        if isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, Mapping) and found.get(name):
            found = found[name]
    words = found if isinstance(found, str) else "" if found is body else json.dumps(found)
    return plain(words)[:MAX_SHOWN].strip()


@contextmanager
def failures_of(url: str) -> Iterator[None]:
    """Turns the failures of a connection to `url` into `VerbFailed`."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise VerbFailed(connection_words(error, url), NO_SERVER) from error


def connection_words(error: Exception, url: str) -> str:
    """One sentence about a connection that failed; it has no word of a library."""
    where = shown_address(url)
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        if not isinstance(cause, Exception):
            break
        causes.append(cause)
    text = " ".join(str(each) for each in causes)
    match error:
        case httpx.ConnectTimeout():
            return f"{where} can't be reached: no connection after {CONNECT_TIMEOUT_S:g} s"
        case httpx.TimeoutException():
            return f"{where} does not answer in time; --timeout gives it longer"
        case httpx.ConnectError() if any(word in text for word in PLAIN_ANSWER):
            return f"{where} does not speak TLS: is its address http://?"
        case httpx.ConnectError() if any(word in text for word in OLD_AUTHORITY):
            return (
                f"{where} can't be trusted: its certificate or authority lacks an extension that "
                "RFC 5280 wants, and Python from 3.13 on"
            )
        case httpx.ConnectError() if any(isinstance(each, ssl.SSLError) for each in causes):
            return f"{where} can't be trusted: its certificate or TLS version is refused"
        case httpx.ConnectError() if "refused" in text or "Errno 111" in text:
            return f"nothing listens at {where}; is the server running, and is this its port?"
        case httpx.ConnectError() if any(word in text for word in ("Name or", "resol", "nodename")):
            return f"there is no host of the name in {where}"
        case httpx.ConnectError():
            return f"{where} can't be reached"
        case httpx.TooManyRedirects() | httpx.InvalidURL():
            return f"{where} leads somewhere else"
        case httpx.RemoteProtocolError() | httpx.DecodingError():
            return f"{where} broke off, or speaks something else than HTTP/1.1"
    return f"the connection to {where} was lost"
