"""A server that answers probes and one inference as ours does, in the words of a test, over HTTP or
TLS: what the script of `helm test` and the notes' curl lines are run against.
"""

from __future__ import annotations

import base64
import itertools
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.deploy.chart import CHART

PNG = (CHART / "files/circle.png").read_bytes()


@contextmanager
def serving(
    status: int = 200,
    image: bytes = PNG,
    text: str = "a red circle",
    key: str = "",
    certificate: Path | None = None,
    pages: tuple[str, ...] = (),
    unready: int = 0,
) -> Iterator[str]:
    """The address of a server that answers one inference in our words; checks what it is asked.

    It has `pages` as well, and is ready after `unready` probes. With `key` it answers 401 to
    requests without it; `certificate` is a folder for TLS, whose clients must present the
    certificate in `client`.
    """

    probes = itertools.count()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith("/ready"):
                self.reply(503 if next(probes) < unready else 200, {})
            else:
                assert self.path in ("/playground", "/docs", "/metrics")
                self.reply(200 if self.path in pages else 404, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if key and self.headers["Authorization"] != f"Bearer {key}":
                self.reply(401, {"error": "no key"})
                return
            inputs = {each["name"]: each["data"][0] for each in body["inputs"]}
            assert self.headers["Content-Type"] == "application/json"
            if "image" in inputs:
                assert base64.b64decode(inputs["image"]) == PNG
                outputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]
            else:
                sent = base64.b64encode(image).decode()
                outputs = [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [sent]}]
            self.reply(status, {"outputs": outputs} if status == 200 else {"error": "no room"})

        def reply(self, code: int, content: dict[str, Any]) -> None:
            text = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        if certificate:
            secured = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            secured.load_cert_chain(certificate / "server/tls.crt", certificate / "server/tls.key")
            secured.load_verify_locations(certificate / "client/tls.crt")
            secured.verify_mode = ssl.CERT_REQUIRED
            server.socket = secured.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            scheme = "https" if certificate else "http"
            yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
