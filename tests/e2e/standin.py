"""A stand-in for a gateway that holds requests while there is no pod: a small proxy that counts
what it holds and tries again until somebody answers. Test equipment: nothing like it is in the
chart, and what a real gateway offers instead is its request rate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

PORT = 18888
SERIES = "standin_requests_held"
PAUSE_S = 0.5
PATIENCE_S = 180.0
ADDRESS = f"127.0.0.1:{PORT}"


class Held(ThreadingHTTPServer):
    """Forwards every POST to `upstream`, whenever that can be reached."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", PORT), Door)
        self.upstream = upstream
        self.lock = threading.Lock()
        self.num_held = 0

    def forward(self, path: str, body: bytes) -> httpx.Response:
        """The answer of the first who gives one that is not 503."""
        end = time.monotonic() + PATIENCE_S
        with self.lock:
            self.num_held += 1
        try:
            while True:
                try:
                    head = {"content-type": "application/json"}
                    with httpx.Client(trust_env=False, timeout=60) as http:
                        reply = http.post(self.upstream + path, content=body, headers=head)
                    if reply.status_code != 503:
                        return reply
                except httpx.ConnectError:
                    pass
                if time.monotonic() > end:
                    return httpx.Response(504, text="nobody came")
                time.sleep(PAUSE_S)
        finally:
            with self.lock:
                self.num_held -= 1


class Door(BaseHTTPRequestHandler):
    """One exchange."""

    server: Held

    def do_POST(self) -> None:
        """Hold and forward."""
        body = self.rfile.read(int(self.headers["content-length"]))
        reply = self.server.forward(self.path, body)
        self._answer(reply.status_code, reply.content)

    def do_GET(self) -> None:
        """The series that Prometheus scrapes."""
        with self.server.lock:
            held = self.server.num_held
        self._answer(200, f"# TYPE {SERIES} gauge\n{SERIES} {held}\n".encode())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextmanager
def holding(upstream: str) -> Iterator[str]:
    """The address of a proxy before `upstream` while the body runs."""
    server = Held(upstream)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{ADDRESS}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
