"""Behind nginx with keep-alive connections to the server, a client's body never becomes another
client's response.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from predictors.cli.child import held_ports
from tests.http.echo import PATIENCE_S, Running, infer_body
from tests.http.test_framing import smuggling_body

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
ROUNDS = 30
SIZE = 8_000_000

CONFIG = """
daemon off;
master_process off;
error_log {folder}/error.log;
pid {folder}/pid;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_max_body_size 16m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream server {{ server 127.0.0.1:{port}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{front};
    location / {{
      proxy_pass http://server;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host localhost;
      proxy_request_buffering {buffering};
    }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, config: str, port: int) -> Iterator[str]:
    """Run an nginx with this configuration, which listens on `port`; its URL once it does."""
    (folder / "nginx.conf").write_text(config)
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.HTTPTransport(retries=8) as transport:  # retries until nginx listens
            httpx.Client(transport=transport, timeout=PATIENCE_S).get(f"{url}/")
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture(params=["on", "off"])
def front(
    running: Running, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[str, int]]:
    """An nginx in front of the echo server, with request buffering on (the default) and off."""
    if not Path(NGINX).exists():
        pytest.skip("nginx is not installed")
    with held_ports(1) as (port,):
        text = CONFIG.format(
            folder=tmp_path, port=running.server.http_port, front=port, buffering=request.param
        )
        with nginx(tmp_path, text, port) as url:
            yield url, port


def attack(port: int, line: bytes) -> bytes:
    """Send a body that contains requests, after a head that is answered early."""
    body = smuggling_body(SIZE)
    head = line + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
    head += b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    found = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(head + body)
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(65_536):
                found += part
    return found


def test_every_client_of_a_proxy_gets_its_own_responses(front: tuple[str, int]) -> None:
    url, port = front
    wrong = []

    def ask(http: httpx.Client, name: str) -> None:
        reply = http.post("/v2/models/echo/infer", json=infer_body(name))
        if reply.status_code != 200 or reply.json().get("outputs", [{}])[0].get("data") != [name]:
            wrong.append((name, reply.status_code, reply.text[:100]))

    lines = [b"POST /nowhere", b"POST /v2/models/echo/infer", b"POST /v1/models/echo:predict"]
    with (
        httpx.Client(base_url=url, timeout=PATIENCE_S) as one,
        httpx.Client(base_url=url, timeout=PATIENCE_S) as two,
        ThreadPoolExecutor(1) as attacker,
    ):
        for i in range(ROUNDS):
            attacking = attacker.submit(attack, port, lines[i % len(lines)])
            ask(one, f"during {i}")
            answer = attacking.result(PATIENCE_S)
            assert answer.count(b"HTTP/1.1 ") <= 1, answer[:500]
            ask(one, f"one {i}")
            ask(two, f"two {i}")
    assert wrong == [], f"{len(wrong)} of {3 * ROUNDS} answers were somebody else's or none"
