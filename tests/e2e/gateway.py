"""A real nginx beside the test, with docs/examples/edge/nginx.conf, and a caller that goes through
it by the example's host names.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx

from predictors.protocol.kserve_sdk import pb, pb_grpc
from tests.e2e import asks
from tests.e2e.cluster import packages
from tests.e2e.conftest import ROOT
from tests.e2e.kube import Kube, until

EXAMPLE = ROOT / "docs/examples/edge/nginx.conf"
PORT = 18443
REST_HOST = "models.example.com"
GRPC_HOST = "qwen-vl-grpc.example.com"
HOSTS = (REST_HOST, "flux-grpc.example.com", GRPC_HOST)
Fields = dict[str, str]


def configuration(kube: Kube, files: Path) -> str:
    """The example, with the addresses of this namespace's Services for their names, another port,
    and its files in a folder of the test."""
    text = EXAMPLE.read_text()
    for model in asks.MODELS:
        name = f"{model}-predictor.vision.svc.cluster.local"
        assert name in text
        text = text.replace(f" {name}:", f" {kube.service(model)[0]}:")
    assert text.count("listen 443 ") == len(HOSTS)
    text = text.replace("listen 443 ", f"listen 127.0.0.1:{PORT} ")
    assert set(re.findall(r"/etc/nginx/edge/(\S+);", text)) == {"tls.crt", "tls.key", "users"}
    return text.replace("/etc/nginx/edge", str(files))


@contextmanager
def running(kube: Kube, files: Path, log: Path) -> Iterator[None]:
    """nginx on `PORT`, as long as needed. Pods see it come from the node's address."""
    written = files / "nginx.conf"
    written.write_text(configuration(kube, files))
    own = f"daemon off; user root; pid {files}/nginx.pid; error_log stderr;"
    words = [str(packages.find("nginx")), "-e", "stderr", "-c", str(written), "-g", own]
    with log.open("w") as out, subprocess.Popen(words, stdout=out, stderr=out) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def password(user: str, word: str) -> Fields:
    """A header with a user and a password."""
    both = base64.b64encode(f"{user}:{word}".encode()).decode()
    return {"authorization": f"Basic {both}"}


class Caller:
    """Calls over TLS that trust one authority, with these headers on each."""

    def __init__(self, authority: Path, fields: Fields) -> None:
        self._authority = authority
        self._fields = fields

    def rest(self, path: str, body: Any, host: str = REST_HOST) -> httpx.Response:
        """One POST, or a GET where `body` is None."""
        trust = ssl.create_default_context(cafile=str(self._authority))
        named = {**self._fields, "host": host}
        with httpx.Client(verify=trust, trust_env=False, timeout=asks.PATIENCE_S) as http:
            method = "GET" if body is None else "POST"
            return http.request(
                method, f"https://127.0.0.1:{PORT}{path}", json=body, headers=named,
                extensions={"sni_hostname": host},
            )  # fmt: skip

    def draw(self) -> httpx.Response:
        """One picture over V2 REST."""
        return self.rest("/v2/models/flux/infer", asks.picture_body())

    def stream(self) -> httpx.Response:
        """One chat as server-sent events."""
        body = {
            "model": "qwen-vl", "stream": True, "max_tokens": 8,
            "messages": [{"role": "user", "content": "Hello"}],
        }  # fmt: skip
        return self.rest("/v1/chat/completions", body)

    def infer(self) -> grpc.StatusCode:
        """The status of one V2 inference over gRPC; OK only with a text."""
        request = pb.ModelInferRequest(model_name="qwen-vl")
        tensor = request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"Hello")
        request.parameters["max_tokens"].int64_param = 4
        metadata = tuple((name.lower(), value) for name, value in self._fields.items())
        trust = grpc.ssl_channel_credentials(self._authority.read_bytes())
        options = [
            ("grpc.ssl_target_name_override", GRPC_HOST), ("grpc.default_authority", GRPC_HOST),
            ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0),
        ]  # fmt: skip
        with grpc.secure_channel(f"127.0.0.1:{PORT}", trust, options) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            try:
                answer = stub.ModelInfer(request, timeout=asks.PATIENCE_S, metadata=metadata)
            except grpc.RpcError as error:
                code: grpc.StatusCode = error.code()
                return code
        assert "text" in [output.name for output in answer.outputs], answer
        return grpc.StatusCode.OK

    def answers(self) -> None:
        """Raise AssertionError unless all three are answered, and rightly."""
        asks.check_png(asks.png_of(asks.checked(self.draw())), 64, 64)
        reply = self.stream()
        assert reply.status_code == 200, reply.text
        lines = [line for line in reply.text.splitlines() if line]
        assert lines[-1] == "data: [DONE]", lines
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert any(event["choices"] for event in events), events
        assert self.infer() is grpc.StatusCode.OK

    def wait_routed(self) -> None:
        """Return once the gateway has read certificate and routes."""

        def asked() -> bool:
            try:
                return self.draw().status_code in (200, 401)
            except httpx.TransportError:
                return False

        until("the gateway has its routes", asked, 60)
