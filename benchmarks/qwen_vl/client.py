"""Streaming clients of an OpenAI server, in processes of their own: each sends a request, reads the
answer to its end and sends the next.

`measure` starts the processes. Each one makes the pictures of its requests first, prints `ready`
and waits for `go`. `python -m benchmarks.qwen_vl.client SHARE` is one process: SHARE is a `Share`
as JSON, and its answers are one JSON line at the end. Connections are kept open.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.qwen_vl.answers import Answered
from benchmarks.qwen_vl.cases import Case, Conversations, is_constrained

CLIENTS_PER_PROCESS = 16
END = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Share:
    """The work of one process: `clients` connections, conversations `first`, first + step, ..."""

    port: int
    model: str
    kind: str
    clients: int
    conversations: int
    tokens: int
    first: int
    step: int
    source: str = "127.0.0.1"
    """The clients' address, by which the server tells its callers apart."""

    @property
    def case(self) -> Case:
        return Case(self.clients, self.kind, self.conversations, self.tokens)


class Events:
    """Parses the bytes of one answer, chunked and split anywhere, into events."""

    def __init__(self) -> None:
        self._raw = b""
        self._text = b""
        self._left = 0  # bytes of the chunk that is being read, its line end included
        self.status = 0
        self.is_over = False

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The data of each event that is complete now; of a failure, its whole body."""
        self._raw += received
        if self.status == 0 and not self._read_head():
            return
        while self._read_chunk():
            pass
        if self.status != 200:
            if self.is_over:
                yield self._text
            return
        *whole, self._text = self._text.split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: "):
                yield event[6:]

    def _read_head(self) -> bool:
        head, separator, rest = self._raw.partition(b"\r\n\r\n")
        if not separator:
            return False
        self.status = int(head.split(None, 2)[1])
        self._raw = rest
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):  # a failure: one chunk, said otherwise
                length = int(line[15:])
                self._raw = b"%x\r\n" % length + rest
                self._is_plain = True
                return True
        self._is_plain = False
        return True

    def _read_chunk(self) -> bool:
        """Move one chunk into the text; False if more bytes are needed or the answer is over."""
        if self.is_over:
            return False
        size, separator, rest = self._raw.partition(b"\r\n")
        if not separator:
            return False
        length = int(size, 16)
        needed = length if self._is_plain else length + 2
        if len(rest) < needed:
            return False
        self._text += rest[:length]
        self._raw = rest[needed:]
        self.is_over = length == 0 or self._is_plain
        return not self.is_over


class Client(asyncio.Protocol):
    """One connection; takes the next conversation of its process when its own is over."""

    def __init__(self, share: Share, openings: list[tuple[int, Any]], out: list[Answered]) -> None:
        self._share = share
        self._talk = Conversations(share.case, share.model) if share.case.turns > 1 else None
        self._openings = openings
        self._out = out
        self._body: Any = None
        self._seen = Answered(sent=time.monotonic())
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def begin(self) -> None:
        if not self._openings:
            self._finish()
            return
        self._number, self._body = self._openings.pop()
        self._send(self._body, turn=0)
        self._seen.is_constrained = self._share.case.has_grammar and is_constrained(self._number)

    def _send(self, body: Any, turn: int) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        self._events, self._pieces = Events(), list[str]()
        self._seen = Answered(sent=time.monotonic(), turn=turn)
        self._transport.write(head.encode() + raw)

    def data_received(self, received: bytes) -> None:
        now = time.monotonic()
        for event in self._events.feed(received):
            if self._events.status != 200:
                self._seen.error = f"{self._events.status} {event[:200].decode(errors='replace')}"
            elif event != END:
                self._read(json.loads(event), now)
        if self._events.is_over:
            self._seen.ended = now
            self._out.append(self._seen)
            self._go_on()

    def _read(self, event: dict[str, Any], now: float) -> None:
        if "error" in event:
            self._seen.error = str(event["error"])[:200]
        self._seen.id = event.get("id", self._seen.id)
        if usage := event.get("usage"):
            self._seen.tokens = usage["completion_tokens"]
            self._seen.prompt_tokens = usage["prompt_tokens"]
        for choice in event.get("choices", ()):
            if piece := choice["delta"].get("content"):
                self._seen.texts.append(now)
                self._pieces.append(piece)

    def _go_on(self) -> None:
        turn = self._seen.turn + 1
        if self._talk is None or turn >= self._share.case.turns or self._seen.error:
            self.begin()
            return
        answer = "".join(self._pieces)
        self._body = self._talk.reply(self._body, answer, self._number * 100 + turn)
        self._send(self._body, turn)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._seen.error = str(error or "the server closed the connection")
            self._out.append(self._seen)
            self.done.set_result(None)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self._transport.close()


def openings(share: Share) -> list[tuple[int, Any]]:
    """The first turns, last one first; as bytes where no second turn builds on them."""
    talk = Conversations(share.case, share.model)
    numbers = [share.first + i * share.step for i in range(share.conversations)]
    made = [(number, talk.opening(number)) for number in reversed(numbers)]
    if share.case.turns > 1:
        return made
    return [(number, json.dumps(body).encode()) for number, body in made]


async def run(share: Share, left: list[tuple[int, Any]]) -> list[Answered]:
    loop = asyncio.get_running_loop()
    answers: list[Answered] = []
    clients = [
        (
            await loop.create_connection(
                lambda: Client(share, left, answers),
                "127.0.0.1",
                share.port,
                local_addr=(share.source, 0),
            )
        )[1]
        for _ in range(share.clients)
    ]
    for client in clients:
        client.begin()
    await asyncio.gather(*(client.done for client in clients))
    return answers


def shares(case: Case, port: int, model: str, first: int, source: str = "127.0.0.1") -> list[Share]:
    """One per process."""
    count = -(-case.clients // CLIENTS_PER_PROCESS)
    conversations = max(1, case.requests // case.turns)
    return [
        Share(
            port=port,
            model=model,
            kind=case.kind,
            clients=_part(case.clients, count, i),
            conversations=_part(conversations, count, i),
            tokens=case.tokens,
            first=first + i,
            step=count,
            source=source,
        )
        for i in range(count)
    ]


def _part(whole: int, parts: int, index: int) -> int:
    return whole // parts + (index < whole % parts)


def measure(
    case: Case, port: int, model: str, first: int, timeout_s: float, source: str = "127.0.0.1"
) -> list[Answered]:
    """Run a case with conversations from `first` on. `RuntimeError` if a process dies."""
    with ExitStack() as stack:
        processes = [_start(stack, share) for share in shares(case, port, model, first, source)]
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("a client process died before it began")
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [a for process in processes for a in _answers_of(process, timeout_s)]


def _start(stack: ExitStack, share: Share) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.qwen_vl.client", json.dumps(asdict(share))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.enter_context(process)  # waits for it and closes its pipes
    stack.callback(process.kill)
    return process


def _answers_of(process: subprocess.Popen[str], timeout_s: float) -> Sequence[Answered]:
    out, _ = process.communicate(timeout=timeout_s)
    if process.returncode != 0:
        raise RuntimeError(f"a client process died with {process.returncode}")
    return [Answered(**each) for each in json.loads(out)]


def main() -> None:
    share = Share(**json.loads(sys.argv[1]))
    left = openings(share)
    gc.freeze()  # no pause for what was prepared
    print("ready", flush=True)
    sys.stdin.readline()
    answers = asyncio.run(run(share, left))
    print(json.dumps([asdict(answer) for answer in answers]))


if __name__ == "__main__":
    main()
