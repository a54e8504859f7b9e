"""The e2e cluster's recipe where it needs no cluster: what names a build, what is asked of apt,
what the components read, whose certificates they trust, what an image archive is known by.
"""

from __future__ import annotations

import io
import json
import shutil
import socket
import ssl
import tarfile
import threading
import tomllib
from pathlib import Path

import pytest

from tests.e2e.cluster import (
    archive,
    building,
    certificates,
    components,
    configs,
    identities,
    images,
    objects,
    packages,
    places,
    recipe,
)
from tests.e2e.cluster.places import ClusterError, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A cluster's folders of its own."""
    made = Site(*(tmp_path / name for name in ("run", "state", "images", "bin", "out")))
    for folder in (made.run, made.state, made.config):
        folder.mkdir(parents=True)
    return made


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A copy of what the binaries are built from."""
    return shutil.copytree(recipe.BUILD, tmp_path / "build")


def test_a_build_keeps_its_name_until_an_input_changes(inputs: Path) -> None:
    named = recipe.build_hash(inputs)
    (inputs / "notes.txt").write_text("no input")
    assert recipe.build_hash(inputs) == named == recipe.build_hash()
    with (inputs / "cmd/kube/main.go").open("a") as source:
        source.write("// changed\n")
    assert recipe.build_hash(inputs) != named


def test_a_file_that_moves_is_another_input(inputs: Path) -> None:
    named = recipe.build_hash(inputs)
    (inputs / "tools.go").rename(inputs / "others.go")
    assert recipe.build_hash(inputs) != named


def test_only_what_is_missing_is_built() -> None:
    every = [b.name for b in recipe.wanted_binaries(None, set())]
    assert every == list(recipe.NAMES)
    some = recipe.wanted_binaries("helm,kubectl", {"helm"})
    assert [b.name for b in some] == ["kube"]
    with pytest.raises(ValueError, match="no such component: istio"):
        recipe.wanted_binaries("istio", set())


def test_what_is_built_by_path_stays_in_go_mod(inputs: Path) -> None:
    kept = (inputs / "tools.go").read_text()
    by_path = [b.package for b in recipe.BINARIES if not b.package.startswith("./")]
    assert all(f'"{package}"' in kept for package in by_path)
    assert all((inputs / b.package).is_dir() for b in recipe.BINARIES if b.package[0] == ".")


def test_the_kubernetes_version_is_that_of_go_mod() -> None:
    assert f"k8s.io/kubernetes {recipe.KUBERNETES}\n" in (recipe.BUILD / "go.mod").read_text()


def test_a_machine_without_go_gets_a_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(building, "GO_FOLDERS", (str(tmp_path / "nowhere"),))
    with pytest.raises(ClusterError, match=r"built with Go 1\.25\.8 or newer; there is no go"):
        building.find_go()


def test_an_old_go_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go version go1.19.8 linux/amd64\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ClusterError, match=r"needs Go 1\.25\.8 or newer; .*go1\.19\.8"):
        building.find_go()


def test_a_module_that_lost_its_manifests_is_named(tmp_path: Path) -> None:
    lost = next(m for m in recipe.MANIFESTS if m.folder == "keda-crd")
    with pytest.raises(ClusterError, match="KEDA's CRDs cannot be had: no config/crd"):
        building.copy_manifests(tmp_path, lost, tmp_path)


def test_a_build_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VISION_PREDICTORS_CACHE", str(tmp_path))
    with pytest.raises(ClusterError, match=r"not built: Kubernetes v1\.34\.4, etcd and kubectl"):
        building.built_folder()


def test_apt_is_asked_for_what_is_missing_only() -> None:
    there = set(packages.PACKAGES) - {"nft", "/usr/lib/cni/bridge"}
    assert packages.missing(there.__contains__) == ["containernetworking-plugins", "nftables"]
    assert packages.missing(lambda _: True) == []


def test_a_machine_without_apt_gets_the_list_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "missing", lambda: ["containerd", "runc"])
    monkeypatch.setattr(packages.shutil, "which", lambda *_args, **_kwargs: None)
    with pytest.raises(ClusterError, match="needs containerd runc, and there is no apt-get"):
        packages.install_missing()


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    places.check_free_disk(tmp_path, 1.0, "a byte")
    with pytest.raises(ClusterError, match=r"all there is needs [0-9.]+ GB in .*, .* GB are free"):
        places.check_free_disk(tmp_path, 1e18, "all there is")


def test_the_cache_is_the_users_unless_said_otherwise() -> None:
    assert places.cache({"VISION_PREDICTORS_CACHE": "/big"}) == Path("/big/e2e")
    assert places.cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/vision-predictors/e2e")
    assert places.logs({}) == places.ROOT / "out/e2e"


def test_a_site_is_found_again_by_later_commands(site: Site) -> None:
    with pytest.raises(ClusterError, match="no cluster is up"):
        places.saved_site(site.run)
    site.save()
    assert places.saved_site(site.run) == site


def test_every_certificate_is_one_that_clients_accept(tmp_path: Path) -> None:
    made = certificates.leaves(configs.NODE_ADDRESS, configs.API_ADDRESS)
    certificates.write_certificates(tmp_path, made)
    server, client = socket.socketpair()
    trusting = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    serving.load_verify_locations(tmp_path / "ca.crt")
    serving.verify_mode = ssl.CERT_REQUIRED
    trusting.load_cert_chain(tmp_path / "kubelet-client.crt", tmp_path / "kubelet-client.key")
    accepted: list[object] = []

    def accept() -> None:
        with serving.wrap_socket(server, server_side=True) as secure:
            accepted.append(secure.getpeercert())

    thread = threading.Thread(target=accept)
    thread.start()
    with trusting.wrap_socket(client, server_hostname=configs.API_ADDRESS) as secure:
        assert secure.version() == "TLSv1.3"
        secure.recv(1)
    thread.join()
    assert "system:masters" in str(accepted)


def test_every_identity_has_its_own_token(site: Site) -> None:
    identities.write_identities(site)
    lines = (site.config / "tokens.csv").read_text().splitlines()
    assert len({line.split(",")[0] for line in lines}) == len(identities.IDENTITIES)
    assert identities.token_of(site) in next(x for x in lines if "system:masters" in x)
    assert site.kubeconfig("keda").stat().st_mode & 0o077 == 0
    keda = next(line for line in lines if "keda-operator" in line)
    assert keda.endswith('"system:serviceaccounts,system:serviceaccounts:keda"')


def test_images_stay_on_disk_and_oom_scores_within_limits(site: Site) -> None:
    read = tomllib.loads(configs.containerd_config(site))
    cri = read["plugins"][configs.CRI_PLUGIN]
    assert read["root"] == str(site.images)
    assert cri["restrict_oom_score_adj"] is True
    assert cri["containerd"]["snapshotter"] == "overlayfs"
    bare = tomllib.loads(configs.containerd_config(site, cri=False))
    assert configs.CRI_PLUGIN in bare["disabled_plugins"]
    assert configs.CRI_PLUGIN not in read["disabled_plugins"]


def test_addresses_agree_in_all_configurations(site: Site) -> None:
    configs.write_configs(site, runc="/opt/runc")
    network = json.loads((site.config / "cni/10-e2e.conflist").read_text())
    kubelet = json.loads((site.config / "kubelet.yaml").read_text())
    proxy = json.loads((site.config / "proxy.yaml").read_text())
    pods = network["plugins"][0]["ipam"]["ranges"][0][0]["subnet"]
    assert pods == proxy["clusterCIDR"] == configs.POD_NET
    assert kubelet["clusterDNS"] == [proxy["bindAddress"]] == [configs.NODE_ADDRESS]
    assert f"bind {configs.NODE_ADDRESS}" in (site.config / "Corefile").read_text()
    assert '"/opt/runc"' in (site.config / "containerd.toml").read_text()
    assert kubelet["cgroupRoot"] == f"/{configs.CGROUP}"


def test_what_components_read_is_what_is_written(site: Site) -> None:
    configs.write_configs(site, runc="runc")
    identities.write_identities(site)
    certificates.write_certificates(site.certificates, certificates.leaves("10.0.0.1", "10.0.0.2"))
    said = [
        (part.name, word.split("=", 1)[-1])
        for part in components.table(site).values()
        for word in (*part.command, *part.environment.values())
    ]
    read = [(name, Path(word)) for name, word in said if word.startswith(f"{site.run}/")]
    assert {name for name, _ in read} >= {"kube-apiserver", "kubelet", "kserve-manager"}
    assert [(name, path) for name, path in read if not path.exists()] == []


def test_controllers_run_as_their_own_accounts_and_not_as_admin(site: Site) -> None:
    parts = components.table(site)
    for name in ("kserve-manager", "keda-operator", "keda-adapter", "metrics-server"):
        words = " ".join((*parts[name].command, *parts[name].environment.values()))
        assert "admin.kubeconfig" not in words
        assert not parts[name].vital


def test_webhooks_are_called_where_the_process_listens(tmp_path: Path) -> None:
    folder = tmp_path / "kserve"
    folder.mkdir()
    (folder / "webhook-manifests.yaml").write_text(
        "kind: ValidatingWebhookConfiguration\nmetadata: {name: x, creationTimestamp: null}\n"
        "webhooks: [{name: y, clientConfig: {service: {name: s, path: /validate}}}]\n"
    )
    (hook,) = objects.kserve_webhooks(tmp_path, b"authority")
    given = hook["webhooks"][0]["clientConfig"]
    assert given == {"url": "https://127.0.0.1:9443/validate", "caBundle": "YXV0aG9yaXR5"}


def test_api_services_of_processes_are_found_and_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "metrics-server-manifests"
    folder.mkdir()
    (folder / "base-apiservice.yaml").write_text(
        "kind: APIService\nmetadata: {name: v1beta1.metrics.k8s.io}\n"
        "spec: {insecureSkipTLSVerify: true, service: {name: metrics-server}}\n"
    )
    made = {thing["kind"]: thing for thing in objects.metrics_objects(tmp_path, b"authority")}
    spec = made["APIService"]["spec"]
    assert spec["caBundle"] == "YXV0aG9yaXR5"
    assert "insecureSkipTLSVerify" not in spec
    assert made["Service"]["metadata"] == {"name": "metrics-server", "namespace": "kube-system"}
    (port,) = made["EndpointSlice"]["ports"]
    assert made["Service"]["spec"]["ports"][0]["targetPort"] == port["port"]
    names = certificates.leaves("10.0.0.1", "10.0.0.2")[0].alternative_names
    assert "DNS:metrics-server.kube-system.svc" in names


def test_kserve_deploys_plainly_and_keeps_its_other_settings(tmp_path: Path) -> None:
    folder = tmp_path / "kserve"
    folder.mkdir()
    entries = {
        "_example": "{}",
        "deploy": '{"defaultDeploymentMode": "Serverless"}',
        "ingress": '{"ingressDomain": "example.com"}',
        "credentials": "{}",
    }
    configuration = {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": entries}
    (folder / "configmap-inferenceservice.yaml").write_text(json.dumps(configuration))
    role = {"kind": "ClusterRole", "metadata": {"name": "kserve-manager-role"}}
    (folder / "rbac-role.yaml").write_text(json.dumps(role))
    made = {thing["kind"]: thing for thing in objects.kserve_objects(tmp_path)}
    kept = made["ConfigMap"]["data"]
    assert json.loads(kept["deploy"])["defaultDeploymentMode"] == "Standard"
    assert json.loads(kept["ingress"])["ingressDomain"] == "example.com"
    assert "_example" not in kept
    bound = made["ClusterRoleBinding"]
    assert bound["roleRef"]["name"] == "kserve-manager-role"
    assert bound["subjects"][0]["name"] == "kserve-controller-manager"


def test_an_image_is_known_by_its_content_and_its_names(tmp_path: Path) -> None:
    binary = tmp_path / "pause"
    binary.write_bytes(b"one")
    first, again, other = (tmp_path / f"{n}.tar" for n in range(3))
    archive.write_single_file_image(first, "localhost/a:1", binary)
    archive.write_single_file_image(again, "localhost/a:1", binary)
    binary.write_bytes(b"two")
    archive.write_single_file_image(other, "localhost/a:1", binary)
    assert first.read_bytes() == again.read_bytes()
    assert archive.read_identity(first).references == ("localhost/a:1",)
    assert archive.read_identity(first) != archive.read_identity(other)
    with tarfile.open(first) as opened:
        (manifest,) = json.load(opened.extractfile("manifest.json") or io.BytesIO())
        (layer,) = manifest["Layers"]
        assert manifest["Config"] in opened.getnames()
        inner = tarfile.open(fileobj=opened.extractfile(layer))  # noqa: SIM115
        assert inner.getmember("pause").mode == 0o755


def test_an_oci_archive_is_known_too_and_anything_else_is_refused(tmp_path: Path) -> None:
    entry = {"digest": "sha256:abc", "annotations": {archive.REFERENCE: "localhost/b:2"}}
    path = tmp_path / "oci.tar"
    path.write_bytes(archive.tar_of({"index.json": json.dumps({"manifests": [entry]}).encode()}))
    assert archive.read_identity(path).references == ("localhost/b:2",)
    path.write_bytes(archive.tar_of({"readme": b"hello"}))
    with pytest.raises(ValueError, match="neither a docker-archive nor an OCI archive"):
        archive.read_identity(path)


def test_an_archive_that_is_not_there_is_a_sentence(site: Site) -> None:
    with pytest.raises(ClusterError, match=r"cannot load .*nothing\.tar"):
        images.load(site, site.run / "nothing.tar")
