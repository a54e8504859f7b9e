"""API keys, TLS and ports: what the values make of runtimes, Secrets, policies and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from predictors.environment import from_env
from tests.deploy.chart import Object, environment, of_kind, refusal, render

LAPTOP = "values-laptop.yaml"
SECURED = "ci/secured-values.yaml"
TLS = 'tls.secretName="certificate"'
KEYS = json.dumps('{"keys": [{"name": "ann", "sha256": "' + "a" * 64 + '"}]}')


def runtime(*sets: str, values: str = LAPTOP) -> Object:
    found = of_kind(render(values, sets=sets), "ServingRuntime")["predictors-flux"]["spec"]
    return {**found, "container": found["containers"][0]}


def variables(*sets: str, values: str = LAPTOP) -> dict[str, Any]:
    return environment(runtime(*sets, values=values)["container"])


def mounts(spec: Object) -> dict[str, Object]:
    """The Secret of each folder below /etc/predictors, by its path."""
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    return {
        mount["mountPath"]: {**mount, **volumes[mount["name"]]["secret"]}
        for mount in spec["container"]["volumeMounts"]
        if mount["mountPath"].startswith("/etc/")
    }


def ports(*sets: str) -> list[tuple[str, int]]:
    return [(each["name"], each["containerPort"]) for each in runtime(*sets)["container"]["ports"]]


def test_without_a_word_everybody_is_served_and_the_server_is_told_so() -> None:
    said = variables()
    assert said["PREDICTORS_ACCESS_OPEN"] == "true"
    assert not [name for name in said if name.startswith("PREDICTORS_TLS_")]
    assert "PREDICTORS_ACCESS_KEYS_FILE" not in said
    assert mounts(runtime()) == {}
    assert not of_kind(render(LAPTOP), "Secret")


def test_keys_close_the_server_and_come_from_a_secret() -> None:
    spec = runtime('apiKeys.secretName="callers"', 'apiKeys.file="team.json"')
    said = environment(spec["container"])
    assert said["PREDICTORS_ACCESS_OPEN"] == "false"
    assert said["PREDICTORS_ACCESS_KEYS_FILE"] == "/etc/predictors/keys/team.json"
    (mount,) = mounts(spec).values()
    assert mount["secretName"] == "callers"
    assert mount["items"] == [{"key": "team.json", "path": "team.json"}]


def test_the_file_of_digests_may_be_a_value_and_becomes_a_secret() -> None:
    objects = render(LAPTOP, sets=(f"apiKeys.content={KEYS}",))
    secret = of_kind(objects, "Secret")["predictors-keys"]
    assert secret["stringData"] == {"keys.json": json.loads(KEYS)}
    assert mounts(runtime(f"apiKeys.content={KEYS}"))["/etc/predictors/keys"]["secretName"] == (
        "predictors-keys"
    )


def test_secrets_are_mounted_read_only_as_folders_so_that_changes_arrive() -> None:
    """A file that is mounted by `subPath` never changes."""
    found = mounts(runtime(values=SECURED))
    assert found.keys() == {
        "/etc/predictors/keys", "/etc/predictors/tls", "/etc/predictors/client-ca",
    }  # fmt: skip
    for mount in found.values():
        assert mount["readOnly"] is True
        assert "subPath" not in mount


def test_the_server_is_told_where_every_file_lies() -> None:
    spec = runtime(values=SECURED)
    said = environment(spec["container"])
    files = {
        f"{path}/{item['path']}" for path, each in mounts(spec).items() for item in each["items"]
    }
    named = {
        value for name, value in said.items() if name.endswith("_FILE") and isinstance(value, str)
    }
    assert named == files
    read = from_env({name: value for name, value in said.items() if isinstance(value, str)})
    assert read.tls.cert_file == "/etc/predictors/tls/tls.crt"
    assert read.tls.client_ca_file == "/etc/predictors/client-ca/ca.crt"
    assert read.access.caller_header == "x-consumer-name"
    assert read.access.trusted_proxies == "10.0.0.0/8,fd00::/8"
    assert read.server.health_port == 8082
    assert read.server.metrics_port == 9090


def test_the_key_that_signs_pictures_is_mounted_into_flux_alone() -> None:
    spec = runtime('c2pa.secretName="signer"')
    said = environment(spec["container"])
    read = from_env({name: value for name, value in said.items() if isinstance(value, str)})
    assert read.flux.provenance == "c2pa"
    mount = mounts(spec)["/etc/predictors/c2pa"]
    assert (mount["secretName"], mount["readOnly"]) == ("signer", True)
    files = {f"/etc/predictors/c2pa/{item['path']}" for item in mount["items"]}
    assert files == {read.flux.c2pa_cert_file, read.flux.c2pa_key_file}
    runtimes = of_kind(render(LAPTOP, sets=('c2pa.secretName="signer"',)), "ServingRuntime")
    other = runtimes["predictors-qwen-vl"]["spec"]
    assert "c2pa" not in json.dumps(other)
    assert "c2pa" not in json.dumps(of_kind(render(LAPTOP), "ServingRuntime"))


CHECKER = (
    'models.flux.checker.uri="pvc://models/checkers/nsfw"',
    'models.flux.checker.labels=["nsfw", "gore"]',
)


def test_the_checkers_folder_is_mounted_read_only_and_named() -> None:
    found = of_kind(
        render(LAPTOP, sets=(*CHECKER, 'models.flux.checker.action="blank"')), "InferenceService"
    )
    predictor = found["flux"]["spec"]["predictor"]
    said = environment(predictor["model"])
    own = {name: value for name, value in said.items() if name.startswith("PREDICTORS_FLUX_CHECK")}
    read = from_env(own).flux
    assert (read.checker, read.checker_labels) == ("/checker", "nsfw,gore")
    assert (read.checker_threshold, read.checker_action) == (0.5, "blank")
    [volume] = [each for each in predictor["volumes"] if each["name"] == "claim-0"]
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    [mount] = [each for each in predictor["model"]["volumeMounts"] if each["name"] == "claim-0"]
    assert mount == {
        "name": "claim-0", "mountPath": "/checker", "readOnly": True, "subPath": "checkers/nsfw",
    }  # fmt: skip
    assert "checker" not in json.dumps(found["qwen-vl"]).lower()


def test_no_value_of_the_chart_has_a_plain_key_or_a_private_one() -> None:
    """Of a certificate the pods of `helm test` get what is public; a key is read from a Secret."""
    for pod in of_kind(render(SECURED), "Pod").values():
        (container,) = pod["spec"]["containers"]
        assert environment(container)["API_KEY"] == {
            "secretKeyRef": {"name": "tester", "key": "key"}
        }
        server, client = pod["spec"]["volumes"]
        assert server["secret"]["items"] == [{"key": "tls.crt", "path": "tls.crt"}]
        assert client["secret"]["secretName"] == "tester-certificate"
        (address,) = [word for word in container["command"] if "://" in word and "\n" not in word]
        assert address.startswith("https://")
        assert address.endswith(".svc:80")


def test_probes_and_scrapes_have_ports_of_their_own() -> None:
    assert ports()[2:] == [("health", 8082), ("metrics", 9090)]
    found = ports("health.port=7001", "metrics.port=7002")
    assert found[2:] == [("health", 7001), ("metrics", 7002)]
    both = ports("health.port=-1", "metrics.port=-1")
    assert both == [("http1", 8080), ("h2c", 8081)]
    assert variables("metrics.port=-1")["PREDICTORS_SERVER_METRICS_PORT"] == "-1"


@pytest.mark.parametrize(("port", "probed"), [(8082, 8082), (7001, 7001), (-1, 8080)])
def test_every_probe_asks_the_health_port(port: int, probed: int) -> None:
    objects = render(LAPTOP, sets=(f"health.port={port}",))
    model = of_kind(objects, "InferenceService")["flux"]["spec"]["predictor"]["model"]
    server = of_kind(objects, "ServingRuntime")["predictors-flux"]["spec"]["containers"][0]
    for container in (model, server):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] == probed
            assert "scheme" not in container[probe]["httpGet"]


@pytest.mark.parametrize(
    ("sets", "name", "port"),
    [
        ((), "metrics", 9090),
        (("metrics.port=7002",), "metrics", 7002),
        (("metrics.port=-1",), "http1", 8080),
        (("metrics.port=-1", TLS), "https", 8080),
    ],
)
def test_scrapers_reach_the_port_of_the_metrics_and_only_that(
    sets: tuple[str, ...], name: str, port: int
) -> None:
    everything = ("podMonitor.enabled=true", "networkPolicy.enabled=true", *sets)
    objects = render(LAPTOP, sets=everything)
    (endpoint,) = of_kind(objects, "PodMonitor")["predictors"]["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == name
    assert dict(ports(*sets))[name] == port
    calls, scrapes = of_kind(objects, "NetworkPolicy")["predictors-flux"]["spec"]["ingress"]
    assert scrapes["ports"] == [{"port": port, "protocol": "TCP"}]
    assert [each["port"] for each in calls["ports"]] == [8080, 8081]


def test_tls_names_the_ports_for_gateways_and_kserve_still_finds_grpc() -> None:
    """KServe takes a port for gRPC if its name has `grpc` or `h2c` in it."""
    assert ports(TLS)[:2] == [("https", 8080), ("grpcs", 8081)]
    nginx = "nginx.ingress.kubernetes.io/backend-protocol"
    services = of_kind(render(SECURED), "InferenceService")
    assert services["qwen-vl"]["metadata"]["annotations"][nginx] == "HTTPS"
    assert nginx not in services["flux"]["metadata"]["annotations"]


def test_cert_manager_is_asked_for_the_names_of_the_services() -> None:
    (certificate,) = of_kind(render(SECURED), "Certificate").values()
    spec = certificate["spec"]
    assert spec["secretName"] == "serving-certificate"
    assert spec["issuerRef"] == {"name": "internal", "kind": "ClusterIssuer"}
    assert set(spec["dnsNames"]) >= {
        "flux-predictor.demo.svc", "qwen-vl-predictor", "models.example.com",
    }  # fmt: skip
    assert not of_kind(render(LAPTOP, sets=(TLS,)), "Certificate")


def test_a_canary_has_its_names_in_the_certificate() -> None:
    sets = (TLS, "tls.certificate.enabled=true", 'tls.certificate.issuerRef.name="x"')
    (certificate,) = of_kind(render("ci/canary-values.yaml", sets=sets), "Certificate").values()
    names = certificate["spec"]["dnsNames"]
    assert len([name for name in names if name.endswith(".demo.svc")]) > 2


def test_a_certificates_names_are_plain_in_a_namespace_of_digits() -> None:
    issuer = ("tls.certificate.enabled=true", 'tls.certificate.issuerRef.name="x"')
    sets = (TLS, *issuer, 'namespaceOverride="12345"')
    (certificate,) = of_kind(render("ci/canary-values.yaml", sets=sets), "Certificate").values()
    assert len([n for n in certificate["spec"]["dnsNames"] if n.endswith(".12345")]) > 1
    assert not [n for n in certificate["spec"]["dnsNames"] if '"' in n]


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        (('apiKeys.secretName="a"', 'apiKeys.content="b"'), "apiKeys.content exclude each other"),
        (('apiKeys.content="keys"',), "apiKeys.content is no file of keys"),
        (('apiKeys.content="{\\"keys\\": []}"',), "apiKeys.content is no file of keys"),
        (('apiKeys.content="{\\"keys\\": [{\\"sha256\\": \\"ab\\"}]}"',), "keys[0].sha256 must"),
        (('apiKeys.content="vpk_secret"',), "apiKeys.content holds a key"),
        (('tls.clientCaSecretName="a"',), "needs tls.secretName"),
        ((TLS, "health.port=-1"), "tls.secretName needs health.port"),
        (("tls.certificate.enabled=true",), "needs tls.secretName"),
        ((TLS, "tls.certificate.enabled=true"), "tls.certificate.issuerRef is needed"),
        ((TLS, 'tls.clientCaSecretName="a"'), "tests.clientCertificateSecretName is needed"),
        (("health.port=9090",), "health.port and metrics.port are both 9090"),
        (("metrics.port=8080",), "metrics"),
        (("health.port=80",), "health"),
        (('callers.trustedProxies=["everywhere"]',), "trustedProxies"),
        (('apiKeys.file="../keys"',), "apiKeys"),
        (("models.flux.settings.access.open=true",), "say apiKeys"),
        (('models.flux.settings.access.keys_file="x"',), "say apiKeys"),
        (('models.flux.settings.tls.cert_file="x"',), "say tls.secretName"),
        (('models.flux.settings.flux.c2pa_key_file="x"',), "say c2pa.secretName"),
        (('models.flux.settings.flux.provenance="c2pa"',), "c2pa needs c2pa.secretName"),
        (
            ('c2pa.secretName="a"', 'models.flux.settings.flux.provenance="none"'),
            "settings.flux.provenance is none and c2pa.secretName is set",
        ),
        (('models.flux.settings.flux.checker="x"',), "say checker.uri"),
        (CHECKER[:1], "models.flux.checker.labels is needed"),
        (CHECKER[1:], "models.flux.checker.labels needs checker.uri"),
        (('models.flux.checker.uri="hf://a/b"',), "models.flux.checker.uri is"),
        (('models.qwen-vl.checker.uri="pvc://a/b"',), "qwen-vl draws none"),
        (("models.flux.settings.server.metrics_port=1",), "say metrics.port"),
        (("models.flux.settings.server.health_port=1",), "say health.port"),
    ],
)
def test_what_cannot_work_is_refused_with_its_key(sets: tuple[str, ...], why: str) -> None:
    assert why in refusal(LAPTOP, sets=sets)
