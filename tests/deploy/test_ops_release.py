"""What a release brings beside its models: prepull, the pods of `helm test`, notes, other objects.

The script of `helm test` and the notes' curl lines are run against a server that answers like ours,
over HTTP; tests/e2e runs them against ours.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from predictors.cli.child import held_ports
from tests.deploy.chart import CASES, CHART, PROFILES, Object, of_kind, refusal, render

LAPTOP = "values-laptop.yaml"
PNG = (CHART / "files/circle.png").read_bytes()
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
}


def askers(*sets: str) -> dict[str, Object]:
    return of_kind(render(LAPTOP, sets=sets), "Pod")


def prepull(*sets: str) -> Object:
    found = of_kind(render(LAPTOP, sets=("prepull.enabled=true", *sets)), "DaemonSet")
    spec: Object = found["predictors-prepull"]["spec"]["template"]["spec"]
    return spec


def test_nothing_is_pulled_ahead_unless_asked_for() -> None:
    assert not of_kind(render(LAPTOP), "DaemonSet")


def test_prepull_runs_the_servers_own_image_on_gpu_nodes_and_then_sleeps() -> None:
    spec = prepull('image.digest="sha256:' + "a" * 64 + '"')
    (init,), (hold,) = spec["initContainers"], spec["containers"]
    runtime = of_kind(
        render(LAPTOP, sets=('image.digest="sha256:' + "a" * 64 + '"',)), "ServingRuntime"
    )["predictors-flux"]
    server = runtime["spec"]["containers"][0]
    assert init["image"] == hold["image"] == server["image"]
    assert init["args"] == ["--version"]  # of the image's entrypoint, which is the server's
    assert "command" not in init
    assert hold["command"] == ["tini", "--", "sleep", "infinity"]
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert [each["key"] for each in spec["tolerations"]] == ["nvidia.com/gpu"]
    for container in (init, hold):
        assert container["securityContext"].items() >= RESTRICTED.items()
        assert "nvidia.com/gpu" not in container["resources"].get("limits", {})
    assert spec["automountServiceAccountToken"] is False


def test_prepull_goes_where_values_say() -> None:
    spec = prepull(
        'prepull.nodeSelector={"nvidia.com/gpu.present":null,"pool":"big"}',
        "prepull.tolerations=[]",
        'prepull.priorityClassName="low"',
    )
    assert spec["nodeSelector"] == {"pool": "big"}
    assert "tolerations" not in spec
    assert spec["priorityClassName"] == "low"


def test_the_daemonset_selects_its_own_pods_and_no_model() -> None:
    found = of_kind(render(LAPTOP, sets=("prepull.enabled=true",)), "DaemonSet")
    spec = found["predictors-prepull"]["spec"]
    chosen = spec["selector"]["matchLabels"].items()
    assert chosen <= spec["template"]["metadata"]["labels"].items()
    assert "serving.kserve.io/inferenceservice" not in spec["template"]["metadata"]["labels"]
    service = of_kind(render(LAPTOP), "InferenceService")["flux"]["metadata"]["labels"]
    assert not chosen <= service.items()


@pytest.mark.parametrize("values", [*PROFILES, *CASES], ids=lambda path: path.name)
def test_there_is_one_test_per_enabled_model(values: Path) -> None:
    objects = render(values)
    pods, services = of_kind(objects, "Pod"), of_kind(objects, "InferenceService")
    asked = {pod["spec"]["containers"][0]["command"][4] for pod in pods.values()}
    assert asked == set(services)
    for pod in pods.values():
        assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
        assert pod["spec"]["containers"][0]["securityContext"].items() >= RESTRICTED.items()
        assert pod["spec"]["automountServiceAccountToken"] is False


def test_tests_can_be_left_out() -> None:
    assert not askers("tests.enabled=false")


def test_a_test_that_passed_prints_its_log_and_leaves_nothing() -> None:
    for pod in askers().values():
        notes = pod["metadata"]["annotations"]
        assert "hook-succeeded" in notes["helm.sh/hook-delete-policy"]
        assert set(notes["helm.sh/hook-output-log-policy"].split(",")) == {
            "hook-succeeded", "hook-failed",
        }  # fmt: skip


def test_a_test_gives_the_model_as_long_as_a_caller_gets() -> None:
    sets = ("tests.waitSeconds=11", "models.flux.timeoutSeconds=22")
    spec = askers(*sets)["predictors-flux-test"]["spec"]
    assert spec["containers"][0]["command"][6:8] == ["11", "22"]
    assert spec["activeDeadlineSeconds"] > 33
    assert spec["restartPolicy"] == "Never"


@contextmanager
def serving(
    status: int = 200,
    image: bytes = PNG,
    text: str = "a red circle",
    key: str = "",
    certificate: Path | None = None,
) -> Iterator[str]:
    """The address of a server that answers one inference in our words; checks what it is asked.

    With `key` it answers 401 to requests without it; `certificate` is a folder for TLS, whose
    clients must present the certificate in `client`.
    """

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path.endswith("/ready")
            self.reply(200, {})

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


def ask(
    model: str, url: str, wait_s: str = "5", etc: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The command of a model's test pod, with another address, and a folder for its /etc."""
    pod = askers()[f"predictors-{model}-test"]
    python, flag, script, address, name, kind, _, timeout_s, picture = pod["spec"]["containers"][0][
        "command"
    ]
    assert (python, flag, name) == ("python", "-c", model)
    assert address == f"http://{model}-predictor.demo.svc"
    moved = script.replace('"/etc/', f'"{etc}/') if etc else script
    words = [sys.executable, flag, moved, url, name, kind, wait_s, timeout_s, picture]
    given = {**os.environ, **variables}
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=given)


@pytest.fixture(scope="module")
def etc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of a server, under another name than it is called by, and of a client."""
    folder = tmp_path_factory.mktemp("etc")
    for name in ("server", "client"):
        (folder / name).mkdir()
        command = [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "2", "-subj", f"/CN={name}.example.com",
            "-keyout", str(folder / name / "tls.key"), "-out", str(folder / name / "tls.crt"),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    return folder


def test_with_keys_the_tests_show_that_none_and_a_wrong_one_are_refused() -> None:
    with serving(key="right") as url:
        done = ask("flux", url, KEYS_ARE_NEEDED="true", API_KEY="right")
        alone = ask("flux", url, KEYS_ARE_NEEDED="true")
        wrong = ask("flux", url, KEYS_ARE_NEEDED="true", API_KEY="left")
    assert done.returncode == 0, done.stderr
    assert "flux refused a request without a key" in done.stdout
    assert "flux refused a request with a wrong key" in done.stdout
    assert "a PNG of 128x128" in done.stdout
    assert alone.returncode == 0, alone.stderr
    assert "nothing else was asked" in alone.stdout
    assert wrong.returncode == 1
    assert "answered 401" in wrong.stderr


def test_the_tests_fail_where_a_server_with_keys_lets_everybody_in() -> None:
    with serving() as url:
        done = ask("qwen-vl", url, KEYS_ARE_NEEDED="true", API_KEY="right")
    assert done.returncode == 1
    assert "instead of 401" in done.stderr


def test_over_tls_the_tests_trust_the_servers_own_certificate_and_show_theirs(
    etc: Path, tmp_path: Path
) -> None:
    with serving(certificate=etc) as url:
        done = ask("flux", url, etc=etc)
        (tmp_path / "server").mkdir()
        (tmp_path / "server/tls.crt").write_text((etc / "client/tls.crt").read_text())
        other = ask("flux", url, etc=tmp_path, wait_s="0")
    assert done.returncode == 0, done.stderr
    assert "a PNG of 128x128" in done.stdout
    assert other.returncode == 1
    assert "certificate verify failed" in other.stderr


def test_the_tests_pass_where_a_picture_and_words_come_back() -> None:
    with serving() as url:
        drawn, told = ask("flux", url), ask("qwen-vl", url)
    assert drawn.returncode == 0, drawn.stderr
    assert "flux answered 200" in drawn.stdout
    assert f"a PNG of 128x128, {len(PNG)} bytes" in drawn.stdout
    assert told.returncode == 0, told.stderr
    assert "it says: a red circle" in told.stdout


@pytest.mark.parametrize(
    ("model", "answer", "why"),
    [
        ("flux", {"status": 503}, "answered 503"),
        ("flux", {"image": b"GIF89a"}, "sent no PNG"),
        ("qwen-vl", {"status": 500}, "no room"),
        ("qwen-vl", {"text": " .\n"}, "sent no words"),
    ],
)
def test_the_tests_fail_where_something_else_comes_back(
    model: str, answer: dict[str, Any], why: str
) -> None:
    with serving(**answer) as url:
        done = ask(model, url)
    assert done.returncode == 1
    assert why in done.stderr


def test_a_test_fails_when_the_model_never_becomes_ready() -> None:
    with held_ports(1) as (port,):  # where nobody listens
        done = ask("flux", f"http://127.0.0.1:{port}", wait_s="0")
    assert done.returncode == 1
    assert "flux was not ready after 0 s" in done.stderr


def test_the_picture_that_is_asked_about_is_one() -> None:
    with Image.open(CHART / "files/circle.png") as picture:
        assert picture.size == (128, 128)
        colours = {colour for _, colour in picture.convert("RGB").getcolors() or ()}
    assert len(colours) == 2


def notes(*sets: str) -> str:
    """The output of `helm install` at its end; `helm template` shows it only within an object."""
    shown = """{kind: ConfigMap, apiVersion: v1, metadata: {name: notes}, data: {text:
        {{ include "predictors.notes" . | toJson }} }}"""
    objects = render(LAPTOP, sets=(*sets, f"extraObjects={json.dumps([shown])}"))
    text: str = of_kind(objects, "ConfigMap")["notes"]["data"]["text"]
    return text


def test_the_notes_are_what_helm_prints() -> None:
    printed = (CHART / "templates/NOTES.txt").read_text()
    assert printed == '{{ include "predictors.notes" . }}\n'


def test_the_notes_have_curl_lines_that_work(tmp_path: Path) -> None:
    lines = [line for line in notes().splitlines() if line.startswith("curl")]
    inside = [line for line in lines if "-predictor.demo.svc" in line]
    assert len(lines) == 4
    assert len(inside) == 2
    with serving() as url:
        for line in lines:
            address = line.split()[2].partition("/v2/")[0]
            done = subprocess.run(
                ["bash", "-c", "set -o pipefail\n" + line.replace(address, url)],
                cwd=tmp_path, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            if "/flux/" in line:
                assert (tmp_path / "flux.png").read_bytes() == PNG
            else:
                assert json.loads(done.stdout)["outputs"][0]["data"] == ["a red circle"]


def test_the_notes_forward_a_port_of_its_own_to_every_model() -> None:
    forwards = [line for line in notes().splitlines() if "port-forward" in line]
    assert [line.split("svc/")[1] for line in forwards] == [
        "flux-predictor 18080:80 &", "qwen-vl-predictor 18081:80 &",
    ]  # fmt: skip
    assert all(line.startswith("kubectl -n demo ") for line in forwards)


def test_the_notes_say_what_is_missing() -> None:
    assert "helm -n demo test predictors" in notes()
    assert "helm -n demo test" not in notes("tests.enabled=false")
    rules = "prometheusRule.enabled=true"
    assert "prometheusRule.runbooks is empty" in notes(rules)
    given = 'prometheusRule.runbooks="https://git.example.com/operations.md"'
    assert "runbooks is empty" not in notes(rules, given)
    assert "WARNING: models has no enabled model" in notes("defaults.enabled=false")
    gateway = 'gateway={"enabled":true,"parentRefs":[{"name":"gw"}]}'
    assert "WARNING: gateway.enabled has no effect" in notes(gateway)
    small = notes(
        'models.flux.gpu={"count":1,"spare":1}', 'models.flux.resources.limits.memory="4Gi"'
    )
    assert "WARNING: models.flux.resources.limits.memory is 4Gi" in small


def test_the_notes_warn_where_there_are_no_keys_and_call_with_one_where_there_are() -> None:
    assert "WARNING: there are no API keys" in notes()
    keyed = notes('apiKeys.secretName="callers"')
    assert "WARNING" not in keyed
    lines = [line for line in keyed.splitlines() if line.startswith("curl")]
    assert len(lines) == 4
    assert all('-H "Authorization: Bearer $API_KEY"' in line for line in lines)
    secured = notes('tls.secretName="certificate"')
    assert "curl -sfk https://127.0.0.1:18080/" in secured
    assert "https://flux-predictor.demo.svc:80/v2/" in secured


def test_the_notes_lines_with_a_key_work(tmp_path: Path) -> None:
    lines = notes('apiKeys.secretName="callers"').splitlines()
    (line,) = [line for line in lines if line.startswith("curl") and "flux-predictor" in line]
    with serving(key="right") as url:
        moved = line.replace(line.split()[2].partition("/v2/")[0], url)
        for key, status in (("right", 0), ("wrong", 22)):
            words = ["bash", "-c", "set -o pipefail\n" + moved.partition(" | ")[0]]
            done = subprocess.run(words, env={**os.environ, "API_KEY": key}, capture_output=True)
            assert done.returncode == status, done.stderr


def test_the_notes_say_how_long_helm_has_to_wait_for_a_pre_compile_job() -> None:
    assert "--timeout" not in notes().partition("helm -n demo test")[2]
    compiled = ('defaults.cache={"enabled":true,"precompile":true}',)
    assert "`--timeout 15m`" in notes(*compiled)  # the laptop's start may take 600 s
    assert "`--timeout 35m`" in notes(*compiled, "models.flux.probes.startup.budgetSeconds=1800")


def test_further_objects_are_rendered_as_text_or_as_maps() -> None:
    text = "kind: Secret\napiVersion: v1\nmetadata: {name: '{{ .Release.Name }}-text'}"
    found = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": '{{ include "predictors.fullname" . }}-map'},
    }
    objects = render(LAPTOP, sets=(f"extraObjects={json.dumps([text, found])}",))
    assert set(of_kind(objects, "Secret")) == {"predictors-text", "predictors-map"}
    assert "extraObjects" in refusal(LAPTOP, sets=("extraObjects=[1]",))
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["extraObjects"] == []
