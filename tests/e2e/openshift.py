"""OpenShift's admission (the constraint `restricted-v2`) of the pods of one namespace, written in
Kubernetes' own policies: a uid of the namespace's range as user and fsGroup for pods that name
none, and a refusal of all others. The group stays 0, as there.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.e2e.kube import CommandFailed, Kube, Object, run, until

API = "admissionregistration.k8s.io"
RANGE = 10_000
"""OpenShift gives each namespace a block of that many uids, from 1,000,000,000 on."""


def policies(namespace: str, uid: int) -> list[Object]:
    """A policy that gives ids and one that refuses others, bound to one namespace."""
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["pods"],
    }
    label = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    here: dict[str, Any] = {"namespaceSelector": label, "resourceRules": [rule]}
    said = "has(object.spec.securityContext) && has(object.spec.securityContext"
    ids = f"Object.spec.securityContext{{runAsUser: {uid}, fsGroup: {uid}}}"
    gives = {
        "matchConstraints": here,
        "matchConditions": [{"name": "names-none", "expression": f"!({said}.runAsUser))"}],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "IfNeeded",
        "mutations": [
            {
                "patchType": "ApplyConfiguration",
                "applyConfiguration": {
                    "expression": f"Object{{spec: Object.spec{{securityContext: {ids}}}}}"
                },
            }
        ],
    }
    none = "!has(c.securityContext) || !has(c.securityContext.runAsUser)"
    own = f"c, {none} || c.securityContext.runAsUser == {uid}"
    right = [
        f"{said}.runAsUser) && object.spec.securityContext.runAsUser == {uid}",
        f"{said}.fsGroup) && object.spec.securityContext.fsGroup == {uid}",
        f"object.spec.containers.all({own})",
        f"!has(object.spec.initContainers) || object.spec.initContainers.all({own})",
    ]
    refuses = {
        "matchConstraints": here,
        "failurePolicy": "Fail",
        "validations": [
            {"expression": each, "message": f"ids must be {uid}, of the namespace's range"}
            for each in right
        ],
    }
    return [
        *bound("MutatingAdmissionPolicy", f"{API}/v1beta1", namespace, gives),
        *bound("ValidatingAdmissionPolicy", f"{API}/v1", namespace, refuses, ["Deny"]),
    ]


def bound(
    kind: str, version: str, name: str, spec: Object, actions: list[str] | None = None
) -> list[Object]:
    """A policy and its binding, both of one name."""
    binding: Object = {"policyName": name}
    if actions:
        binding["validationActions"] = actions
    about = {"apiVersion": version, "metadata": {"name": name}}
    return [
        {**about, "kind": kind, "spec": spec},
        {**about, "kind": f"{kind}Binding", "spec": binding},
    ]


@contextmanager
def admission(kube: Kube) -> Iterator[int]:
    """The namespace's admission while the body runs; its uid."""
    uid = 1_000_000_000 + RANGE * secrets.randbelow(100_000)
    made = policies(kube.namespace, uid)
    kube.apply(*made)
    try:
        until("the admission gives a uid", lambda: admitted(kube, {}) == uid, 60)
        until("the admission refuses a uid", lambda: is_refused(kube, {"runAsUser": 10001}), 60)
        yield uid
    finally:
        listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
        run("kubectl", "delete", "--ignore-not-found", "-f", "-", stdin=listed)


def admitted(kube: Kube, ids: dict[str, int]) -> int | None:
    """The uid with which a pod that asks for these ids would run; raises `CommandFailed`."""
    container = {
        "name": "any",
        "image": "any",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    context = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **ids}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "any"},
        "spec": {"containers": [container], "securityContext": context},
    }
    said = kube("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(pod))
    found: int | None = json.loads(said)["spec"]["securityContext"].get("runAsUser")
    return found


def is_refused(kube: Kube, ids: dict[str, int]) -> bool:
    """True if a pod that asks for these ids is refused for them."""
    try:
        admitted(kube, ids)
    except CommandFailed as error:
        return "of the namespace's range" in str(error)
    return False
