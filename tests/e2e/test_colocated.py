"""Two models in one pod, from one claim: KServe adds the second model's argument to the runtime's,
one process serves both by their own Services, and `helm test` asks each of them.
"""

from __future__ import annotations

from tests.e2e import answers, asks
from tests.e2e.helm import LAPTOP, Release, small
from tests.e2e.kube import Kube

BOTH = ["flux", "qwen-vl"]


def test_one_pod_serves_both_models_by_their_own_services(kube: Kube) -> None:
    release = Release("both", kube.namespace)
    try:
        release.install([LAPTOP], small() | {"colocate": BOTH})
        kube.wait_served("flux")
        (pod,) = kube.ready_pods("flux", 1)
        (server,) = (c for c in pod["spec"]["containers"] if c["name"] == "kserve-container")
        named = [word for word in server["args"] if word.startswith(("flux=", "qwen-vl="))]
        assert sorted(named) == ["flux=/mnt/models", "qwen-vl=/colocated"]
        assert not kube.pods("qwen-vl")
        asks.check_png(answers.draw(kube, 64, 64), 64, 64)
        assert answers.describe(kube)
        assert answers.stream(kube)
        said = release.test()
        assert said.count("Phase:          Succeeded") == len(BOTH), said
    finally:
        release.uninstall(wait=False)
