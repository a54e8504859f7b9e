"""An object store of S3's kind in the namespace of a test: moto's server, which asks everybody for
a signature, with the checkpoints in a bucket, and what KServe needs to fetch from it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.image.places import STORAGE
from tests.e2e.kube import Kube, Object, run

NAME = "s3"
PORT = 9000
BUCKET = "models"
SECRET = "s3-credentials"
BARE = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
REQUESTS = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}}

FILL = f"""
import json, pathlib, sys, urllib.request
import boto3
url = "http://127.0.0.1:{PORT}"
given = dict(endpoint_url=url, region_name="us-east-1")
first = dict(given, aws_access_key_id="any", aws_secret_access_key="any")
iam = boto3.client("iam", **first)
iam.create_user(UserName="kserve")
may = dict(Version="2012-10-17", Statement=[dict(Effect="Allow", Action="s3:*", Resource="*")])
iam.put_user_policy(UserName="kserve", PolicyName="s3", PolicyDocument=json.dumps(may))
key = iam.create_access_key(UserName="kserve")["AccessKey"]
s3 = boto3.client("s3", **first)
s3.create_bucket(Bucket="{BUCKET}")
for path in sorted(pathlib.Path("/checkpoints").rglob("*")):
    if path.is_file():
        s3.upload_file(str(path), "{BUCKET}", str(path.relative_to("/checkpoints")))
# from here on every call needs a signature of a known key
plain = {{"Content-Type": "text/plain"}}
urllib.request.urlopen(urllib.request.Request(url + "/moto-api/reset-auth", b"0", plain))
print(json.dumps([key["AccessKeyId"], key["SecretAccessKey"]]))
"""
"""Fills the bucket from the claim, makes a user who may read it, and prints the user's key."""

ASK = f"""
import sys, boto3, botocore.exceptions
client = boto3.client("s3", endpoint_url="http://127.0.0.1:{PORT}", region_name="us-east-1",
    aws_access_key_id=sys.argv[1], aws_secret_access_key=sys.argv[2])
try:
    print(client.list_objects_v2(Bucket="{BUCKET}")["KeyCount"])
except botocore.exceptions.ClientError as error:
    print(error.response["Error"]["Code"])
"""
"""Lists the bucket with a key and its secret; prints how many objects there are, or the refusal."""


def server() -> list[Object]:
    """Pod and Service of the store, with the claim `checkpoints` beside it to be filled from."""
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "labels": {"app": NAME}},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": NAME,
                    "image": STORAGE,
                    "imagePullPolicy": "Never",
                    "command": ["moto_server", "-H", "0.0.0.0", "-p", str(PORT)],
                    "ports": [{"containerPort": PORT}],
                    "readinessProbe": {
                        "httpGet": {"path": "/moto-api/data.json", "port": PORT},
                        "periodSeconds": 1,
                    },
                    "resources": REQUESTS,
                    "securityContext": BARE,
                    "volumeMounts": [
                        {"name": "checkpoints", "mountPath": "/checkpoints", "readOnly": True}
                    ],
                }
            ],
            "volumes": [
                {"name": "checkpoints", "persistentVolumeClaim": {"claimName": "checkpoints"}}
            ],
        },
    }
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {"selector": {"app": NAME}, "ports": [{"port": PORT}]},
    }
    return [pod, service]


def credentials(namespace: str, key: str, secret: str) -> Object:
    """The Secret, as KServe documents it for S3."""
    at = "serving.kserve.io"
    given = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": SECRET,
            "annotations": {
                f"{at}/s3-endpoint": f"{NAME}.{namespace}.svc.cluster.local:{PORT}",
                f"{at}/s3-usehttps": "0",
                f"{at}/s3-region": "us-east-1",
            },
        },
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in given.items()},
    }


def initializer(name: str) -> Object:
    """The container that fetches, for a model's `storage.containerName`; fit for `restricted`."""
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ClusterStorageContainer",
        "metadata": {"name": name},
        "spec": {
            "container": {
                "name": "storage-initializer",
                "image": STORAGE,
                "imagePullPolicy": "Never",
                "resources": REQUESTS,
                "securityContext": {
                    **BARE,
                    "runAsNonRoot": True,
                    "readOnlyRootFilesystem": True,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
            },
            "supportedUriFormats": [{"prefix": "s3://"}],
            "supportsMultiModelDownload": True,
            "workloadType": "initContainer",
        },
    }


@contextmanager
def serving(kube: Kube) -> Iterator[None]:
    """The store with the bucket filled, the Secret with the only key, and an initializer that has
    the namespace's name, while the body runs."""
    kube.apply(*server(), initializer(kube.namespace))
    try:
        kube.wait(f"pod/{NAME}", "condition=Ready")
        key, secret = json.loads(kube.exec(NAME, "python", "-c", FILL))
        kube.apply(credentials(kube.namespace, key, secret))
        assert listed(kube, key, "wrong") == "SignatureDoesNotMatch"
        assert int(listed(kube, key, secret)) > 1
        yield
    finally:
        run("kubectl", "delete", "clusterstoragecontainer", kube.namespace, "--ignore-not-found")
        kube("delete", f"pod/{NAME}", f"service/{NAME}", "--ignore-not-found", "--wait=false")


def listed(kube: Kube, key: str, secret: str) -> str:
    """The number of objects in the bucket as one caller sees it, or the code of its refusal."""
    return kube.exec(NAME, "python", "-c", ASK, key, secret).strip()
