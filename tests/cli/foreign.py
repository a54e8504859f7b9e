"""A server of others: OpenAI chat alone, with vLLM's error bodies, or whatever a test wants."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, str, bytes]
"""Status, content type and body."""
Respond = Callable[[str, str, Any], Answer | None]
"""The answer to method, path and body; None closes the connection without one."""


def json_answer(status: int, body: object) -> Answer:
    return status, "application/json", json.dumps(body).encode()


def events(*bodies: object, end: bytes = b"data: [DONE]\n\n") -> Answer:
    lines = b"".join(b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies)
    return 200, "text/event-stream; charset=utf-8", lines + end


def chunk(text: str | None = None, reason: str | None = None) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def vllm_like(method: str, path: str, body: Any) -> Answer | None:
    """A server with the one model `llava`."""
    if path == "/v1/models":
        return json_answer(200, {"object": "list", "data": [{"id": "llava", "object": "model"}]})
    if path == "/health":
        return 200, "text/plain", b""
    if path != "/v1/chat/completions":
        return json_answer(404, {"detail": "Not Found"})
    if body["model"] != "llava":
        message = f"The model `{body['model']}` does not exist."
        return json_answer(404, {"object": "error", "message": message, "code": 404})
    usage = {"choices": [], "usage": {"completion_tokens": 3}}
    if not body.get("stream"):
        said = {"role": "assistant", "content": "A foreign cat."}
        choices = [{"index": 0, "message": said, "finish_reason": "stop"}]
        return json_answer(200, {"choices": choices, "usage": {"completion_tokens": 3}})
    asked = (body.get("stream_options") or {}).get("include_usage")
    said = [chunk(""), chunk("A "), chunk("foreign "), chunk("cat.", "stop")]
    return events(*said, *([usage] if asked else []))


class _Server(ThreadingHTTPServer):
    """Prints nothing about clients that leave before they have read an answer."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def foreign_server(respond: Respond = vllm_like) -> Iterator[str]:
    """The address of a server that answers as `respond` says."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Print nothing."""

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            found = respond(self.command, self.path, json.loads(raw) if raw else None)
            if found is None:
                return
            status, kind, content = found
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer  # noqa: N815

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
