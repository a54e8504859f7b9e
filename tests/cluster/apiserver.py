"""A small API server on the loopback address, with TLS, tokens, pods, InferenceServices and Events.
It refuses what the real one refuses. The real API server is used in tests/e2e.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from predictors.cluster.identity import PodIdentity

NAMESPACE, POD, SERVICE, TOKEN = "models", "flux-predictor-7d-x1", "flux", "a-token"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
POD_PATH = f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}"
SERVICE_PATH = f"/apis/serving.kserve.io/v1beta1/namespaces/{NAMESPACE}/inferenceservices/{SERVICE}"
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
PATIENCE_S = 120.0  # a process that imports torch on a busy machine
PATCHES = {"application/merge-patch+json", "application/strategic-merge-patch+json"}


@dataclass
class Request:
    method: str
    path: str
    body: Any = None


@dataclass
class State:
    """The server's objects and behaviour."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """Answers that are text, by path."""
    requests: list[Request] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    """Statuses to answer with, by `METHOD path`."""
    unanswered: set[str] = field(default_factory=set)
    """`METHOD path` of what is carried out and gets no answer while its client waits."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    released: threading.Event = field(default_factory=threading.Event)
    """Requests are answered only while this is set."""

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """The value of `what` as soon as it is true."""
        with self.changed:
            assert self.changed.wait_for(what, PATIENCE_S), [
                (r.method, r.path) for r in self.requests
            ]
            return what()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [o for path, o in self.objects.items() if path.startswith(f"{EVENTS}/")]

    def events_about(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["involvedObject"]["kind"] == kind]

    def reasons(self, kind: str = "Pod") -> list[str]:
        """Reasons of the events about objects of this kind, in order."""
        return [event["reason"] for event in self.events_about(kind)]

    @property
    def annotation(self) -> str:
        annotations = self.objects[POD_PATH]["metadata"].get("annotations", {})
        return str(annotations.get("predictors.vision/warm-up", ""))

    def asked(self, method: str, path: str) -> list[Any]:
        """Bodies of the requests whose path begins with `path`."""
        return [r.body for r in self.requests if r.method == method and r.path.startswith(path)]


class Handler(BaseHTTPRequestHandler):
    state: State
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def handle_one_request(self) -> None:
        """Ignore clients that disconnect."""
        try:
            super().handle_one_request()
        except (ConnectionError, ssl.SSLError, TimeoutError):
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def _answer(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        with self.state.changed:
            self.state.requests.append(Request(method, self.path, body))
            self.state.changed.notify_all()
        self.state.released.wait(PATIENCE_S)
        with self.state.changed:
            status, found = self._decide(method, body)
            self.state.changed.notify_all()
        if f"{method} {self.path}" in self.state.unanswered:
            self.rfile.read(1)  # until the client gives up
            self.close_connection = True
            return
        text = self.state.texts.get(self.path)
        if text is not None and status == 404:
            status = 200
        content = json.dumps(found).encode() if text is None else text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _decide(self, method: str, body: Any) -> tuple[int, dict[str, Any]]:
        forced = self.state.statuses.get(f"{method} {self.path}")
        if forced is not None:
            return _status(forced, "as the test says")
        if self.headers.get("Authorization", "").lower() != f"bearer {TOKEN}":
            return _status(401, "Unauthorized")
        if method == "POST":
            return self._create(body)
        found = self.state.objects.get(self.path)
        if found is None:
            return _status(404, f"{self.path} not found")
        if method == "PATCH":
            if self.headers.get("Content-Type") not in PATCHES:
                return _status(415, "no patch")
            merge(found, body)
        return 200, found

    def _create(self, body: Any) -> tuple[int, dict[str, Any]]:
        if self.path != EVENTS:
            return _status(404, "the server could not find the requested resource")
        wrong = wrong_in_event(body)
        if wrong:
            return _status(422, wrong)
        path = f"{EVENTS}/{body['metadata']['name']}"
        if path in self.state.objects:
            return _status(409, "already exists")
        self.state.objects[path] = body
        return 201, body


def merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """JSON merge patch (RFC 7386), in place."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


def wrong_in_event(body: dict[str, Any]) -> str:
    """The fields that Kubernetes' validation of core/v1 Events would refuse; empty if none."""
    about = body.get("involvedObject", {})
    checks = {
        "apiVersion": (body.get("apiVersion"), body.get("kind")) == ("v1", "Event"),
        "metadata.name": bool(SUBDOMAIN.fullmatch(body.get("metadata", {}).get("name", ""))),
        "metadata.name is too long": len(body.get("metadata", {}).get("name", "")) <= 253,
        "metadata.namespace": body.get("metadata", {}).get("namespace") == NAMESPACE,
        "involvedObject.namespace": about.get("namespace") == NAMESPACE,
        "involvedObject": all(about.get(k) for k in ("apiVersion", "kind", "name", "uid")),
        "reason": bool(re.fullmatch(r"[A-Z][A-Za-z]{1,127}", body.get("reason", ""))),
        "message": 0 < len(body.get("message", "")) <= 1024,
        "type": body.get("type") in {"Normal", "Warning"},
        "count": isinstance(body.get("count"), int) and body["count"] >= 1,
        "times": all(is_time(body.get(k, "")) for k in ("firstTimestamp", "lastTimestamp")),
        "reporting": bool(body.get("reportingComponent")) and bool(body.get("reportingInstance")),
    }
    return ", ".join(name for name, holds in checks.items() if not holds)


def is_time(text: str) -> bool:
    return bool(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text))


def _status(code: int, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "apiVersion": "v1", "code": code, "message": message}


def certificate(folder: Path) -> Path:
    """An authority like that of EKS, without key usage and key identifiers; and `server.pem`, its
    certificate for 127.0.0.1 with the key. Returns the authority."""
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    is_ca = x509.BasicConstraints(ca=True, path_length=None)
    made = _builder("kubernetes", authority).add_extension(is_ca, critical=True)
    alone = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    leaf = _builder("kube-apiserver", server).add_extension(alone, critical=False)
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(made.sign(authority, hashes.SHA256()).public_bytes(pem))
    private = serialization.PrivateFormat.PKCS8
    key = server.private_bytes(pem, private, serialization.NoEncryption())
    signed = leaf.sign(authority, hashes.SHA256()).public_bytes(pem)
    (folder / "server.pem").write_bytes(signed + key)
    return folder / "ca.crt"


def _builder(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
    )


def mounted(folder: Path) -> Path:
    """`folder` with the files of a mounted ServiceAccount."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate(folder)
    (folder / "token").write_text(TOKEN)
    (folder / "namespace").write_text(NAMESPACE)
    return folder


def identity(folder: Path, port: int, service: str = SERVICE) -> PodIdentity:
    return PodIdentity(folder, "127.0.0.1", str(port), NAMESPACE, POD, service)


def environment(port: int) -> dict[str, str]:
    """The variables that Kubernetes, KServe and the chart set in a pod."""
    return {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(port),
        "POD_NAME": POD,
        "POD_NAMESPACE": NAMESPACE,
        "INFERENCE_SERVICE_NAME": SERVICE,
    }


def fresh_state() -> State:
    """One pod and its InferenceService; requests are answered."""
    named = {"namespace": NAMESPACE}
    state = State(
        {
            POD_PATH: {"kind": "Pod", "metadata": {"name": POD, "uid": "pod-uid", **named}},
            SERVICE_PATH: {
                "kind": "InferenceService",
                "metadata": {"name": SERVICE, "uid": "service-uid", **named},
            },
        }
    )
    state.released.set()
    return state


@contextmanager
def api_server(folder: Path, state: State, port: int = 0) -> Iterator[int]:
    """Serves `state` over TLS with the certificate in `folder`; gives the port."""
    handler = type("Bound", (Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        state.released.set()
        server.shutdown()
        thread.join(PATIENCE_S)
        server.server_close()
