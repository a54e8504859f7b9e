"""Raises the replicas of one Deployment from zero, by its scale subresource. Never lowers them:
that is an autoscaler's work.
"""

from __future__ import annotations

from predictors.cluster.api import ApiRefusal, KubernetesApi

SCALE = "/apis/apps/v1/namespaces/{}/deployments/{}/scale"
CONFLICT = 409


class DeploymentScale:
    """The replicas of a Deployment. Needs the verbs `get` and `patch` on `deployments/scale`.
    Blocks; for one thread."""

    def __init__(self, api: KubernetesApi, namespace: str, deployment: str) -> None:
        self._api = api
        self._path = SCALE.format(namespace, deployment)

    def raise_from_zero(self) -> bool:
        """Ask for one replica if none is asked for. True if this call did.

        Raises `ApiUnavailable` or `ApiRefusal`. If the object changed meanwhile, nothing is done:
        the version in the patch makes the API server refuse it, and a later call looks again.
        """
        found = self._api.get(self._path)
        if found.get("spec", {}).get("replicas", 0) > 0:
            return False
        version = found.get("metadata", {}).get("resourceVersion", "")
        change = {"metadata": {"resourceVersion": version}, "spec": {"replicas": 1}}
        try:
            self._api.patch(self._path, change)
        except ApiRefusal as error:
            if error.status != CONFLICT:
                raise
            return False
        return True
