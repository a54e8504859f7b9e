"""`kubectl apply -k manifests/laptop`, without Helm, gives the same answers.

What a user sets in a kustomization of their own is set here, too: namespace and image.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.e2e import answers, asks
from tests.e2e.conftest import ROOT
from tests.e2e.helm import server_image
from tests.e2e.kube import Kube

LAPTOP = ROOT / "manifests" / "laptop"
IMAGE = "vision-predictors"  # what the manifests call it


@pytest.fixture(scope="module")
def overlay(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kustomization that takes the laptop's as it is, into this namespace."""
    folder = tmp_path_factory.mktemp("overlay")
    name, _, tag = server_image().rpartition(":")
    chosen = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": kube.namespace,
        "resources": [os.path.relpath(LAPTOP, folder.resolve())],
        "images": [{"name": IMAGE, "newName": name, "newTag": tag}],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(chosen))
    return folder


@pytest.fixture(scope="module")
def applied(kube: Kube, overlay: Path) -> Kube:
    """The namespace with the manifests applied and served."""
    kube("apply", "-k", str(overlay))
    kube.wait_served(*asks.MODELS)
    return kube


def test_manifests_alone_draw_a_picture(applied: Kube) -> None:
    answers.draw(applied, 128, 96)


def test_manifests_alone_describe_a_picture_over_grpc(applied: Kube) -> None:
    print(answers.describe(applied))


def test_manifests_alone_stream_to_openais_client_and_by_dns_name(applied: Kube) -> None:
    assert answers.stream(applied)
    assert answers.stream_by_name(applied)
