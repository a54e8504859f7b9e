"""A release's objects beside its models: prepull, the pods of `helm test`, other objects.

The script of `helm test` is run against a server that answers like ours, over HTTP; tests/e2e runs
it against ours.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from predictors.cli.child import held_ports
from predictors.settings import Settings
from tests.deploy.answering import PNG, serving
from tests.deploy.chart import CASES, CHART, PROFILES, Object, of_kind, refusal, render

LAPTOP = "values-laptop.yaml"
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
    colocated = {"qwen-vl"} if values.name == "colocated-values.yaml" else set()
    assert asked == set(services) | colocated
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


def test_the_tests_say_each_state_of_a_model_once_until_it_is_ready() -> None:
    with serving(unready=2) as url:
        done = ask("flux", url)
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert first == "flux: loads or warms up"
    assert second.startswith(f"flux is ready at {url}, after ")


def test_the_tests_say_where_the_pages_are_and_what_is_off() -> None:
    with serving(pages=("/playground", "/metrics")) as url:
        some = ask("flux", url).stdout
    with serving(pages=("/docs",), key="right") as url:
        others = ask("flux", url, KEYS_ARE_NEEDED="true", API_KEY="right").stdout
    assert f"page for browsers: {some.split('ready at ')[1].split(',')[0]}/playground\n" in some
    assert "page of the API: off (settings.server.docs)\n" in some
    assert "/metrics\n" in some
    assert "TLS: off (tls.secretName)\n" in some
    assert "API keys: off (apiKeys)" in some
    assert "page for browsers: off (settings.server.playground)\n" in others
    assert f"page of the API: {url}/docs\n" in others
    assert "metrics on this port: off (metrics.port" in others
    assert "API keys: off" not in others


def test_the_keys_that_the_tests_name_are_settings() -> None:
    script = (CHART / "files/ask.py").read_text()
    named = set(re.findall(r"settings\.(\w+)\.(\w+)", script))
    assert named == {("server", "playground"), ("server", "docs")}
    assert all(hasattr(getattr(Settings(), section), key) for section, key in named)


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


def test_a_model_without_a_pod_is_said_to_have_none() -> None:
    with held_ports(1) as (port,):
        done = ask("flux", f"http://127.0.0.1:{port}", wait_s="0.1")
    assert done.returncode == 1
    assert done.stdout.startswith("flux: no pod answers (")


def test_the_picture_that_is_asked_about_is_one() -> None:
    with Image.open(CHART / "files/circle.png") as picture:
        assert picture.size == (128, 128)
        colours = {colour for _, colour in picture.convert("RGB").getcolors() or ()}
    assert len(colours) == 2


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
