"""The text at the end of `helm install`: calls that work, the models' state, what is off.

Its curl lines are run against a server that answers like ours, over HTTP; the state is read by the
real helm from an API server that has nothing but InferenceServices.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.answering import PNG, serving
from tests.deploy.asked_cluster import render_in
from tests.deploy.chart import CHART, of_kind, render

LAPTOP = "values-laptop.yaml"
SHOWN = """{kind: ConfigMap, apiVersion: v1, metadata: {name: notes}, data: {text:
    {{ include "predictors.notes" . | toJson }} }}"""


def notes(*sets: str) -> str:
    """The output of `helm install` at its end; `helm template` shows it only within an object."""
    objects = render(LAPTOP, sets=(*sets, f"extraObjects={json.dumps([SHOWN])}"))
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


def test_the_notes_warn_of_what_is_taken_and_reaches_less_than_its_name_says() -> None:
    said = notes(
        'global={"cattle":{"url":"x"},"domain":"y"}', 'commonLabels={"app":"vision"}',
        'models.flux.storage.uri="hf://a/b"',
        'models.flux.env=[{"name":"HTTPS_PROXY","value":"http://proxy"}]',
        'models.flux.podAnnotations={"prometheus.io/port":"8080"}',
    )  # fmt: skip
    warned = [line for line in said.splitlines() if line.startswith("WARNING: ")]
    assert any("global has cattle, domain" in line for line in warned)
    assert any("commonLabels.app does not reach" in line for line in warned)
    assert any("models.flux.env[0] HTTPS_PROXY is the server's alone" in line for line in warned)
    assert any("is 8080, and the metrics are on 9090" in line for line in warned)


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


def off(*sets: str) -> list[str]:
    """The lines of what is off."""
    text = notes(*sets).partition("Off, and the value that switches it on:\n")[2]
    return [line.removeprefix("- ") for line in text.split("\n\n")[0].splitlines()]


def test_the_notes_list_what_is_off_with_the_value_that_switches_it_on() -> None:
    listed = off()
    assert 'page for browsers of flux: models.flux.settings.server.playground "on"' in listed
    assert 'page of the API of qwen-vl: models.qwen-vl.settings.server.docs "on"' in listed
    assert "API keys: apiKeys.secretName" in listed
    assert "autoscaling of flux: models.flux.autoscaling.enabled" in listed
    assert "alerts: prometheusRule.enabled" in listed
    assert "model flux: models.flux.enabled" in off("models.flux.enabled=false")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("podMonitor.enabled", True),
        ("prometheusRule.enabled", True),
        ("dashboard.enabled", True),
        ("networkPolicy.enabled", True),
        ("models.flux.autoscaling.enabled", True),
        ("apiKeys.secretName", "callers"),
        ("tls.secretName", "certificate"),
        ("models.flux.settings.server.playground", "on"),
        ("models.flux.settings.server.docs", "on"),
    ],
)
def test_the_value_that_the_notes_name_switches_it_on(key: str, value: object) -> None:
    before, after = off(), off(f"{key}={json.dumps(value)}")
    (gone,) = set(before) - set(after)
    assert key in gone
    assert set(after) < set(before)


@pytest.mark.parametrize("key", ["events.enabled", "tests.enabled"])
def test_what_is_on_by_default_is_listed_once_it_is_off(key: str) -> None:
    (new,) = set(off(f"{key}=false")) - set(off())
    assert new.endswith(f": {key}")


def test_the_notes_say_where_the_pages_are() -> None:
    assert "http://127.0.0.1" not in [line for line in notes().splitlines() if "page" in line]
    shown = ('models.qwen-vl.settings.server={"playground":"on","docs":"on"}',)
    lines = notes(*shown).splitlines()
    assert "page for browsers: http://127.0.0.1:18081/playground" in lines
    assert "page of the API: http://127.0.0.1:18081/docs" in lines
    secured = notes(*shown, 'tls.secretName="certificate"').splitlines()
    assert "page for browsers: https://127.0.0.1:18081/playground" in secured


def test_the_notes_say_the_state_that_kserve_reports_of_each_model(tmp_path: Path) -> None:
    """As `helm upgrade` does: `helm template` alone finds nothing, as before a first install."""
    since = "2026-11-01T10:00:00Z"
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": since}
    failed = {"type": "Ready", "status": "False", "reason": "PodCrash", "message": "exit code 3"}
    services = {
        "flux": {"status": {"conditions": [{"type": "Other", "status": "False"}, ready]}},
        "qwen-vl": {"status": {"conditions": [failed]}},
        "new": {},
    }
    sets = ('models.new={"format":"flux","storage":{"uri":"pvc://a/b"}}',
            'models.none={"format":"flux","storage":{"uri":"pvc://a/b"}}',
            f"extraObjects={json.dumps([SHOWN])}")  # fmt: skip
    done = render_in(tmp_path, services, LAPTOP, *sets)
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    text = of_kind(objects, "ConfigMap")["notes"]["data"]["text"]
    states = {part.split(" ")[0]: part.splitlines()[1] for part in text.split("\n== ")[1:]}
    assert states == {
        "flux": f"state: ready since {since}, before this command",
        "qwen-vl": "state: not ready before this command (PodCrash): exit code 3",
        "new": "state: KServe has said nothing of it yet",
        "none": "state: not made yet",
    }
    assert notes().count("\nstate: not made yet\n") == 2
