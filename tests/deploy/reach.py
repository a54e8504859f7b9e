"""Connections that rendered NetworkPolicies allow, as Cyclonus computes them, a checker of policies
that is not ours, built from its Go module.

It knows policies alone: that a network plugin enforces them is not shown, and a kubelet's probes,
which no policy blocks, are unknown to it.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.deploy.chart import Object, of_kind
from tests.deploy.go_programs import installed

CYCLONUS = ("github.com/mattfenwick/cyclonus/cmd/cyclonus", "v0.5.6")


@dataclass(frozen=True)
class Peer:
    """A pod by its namespace and labels, or without a namespace an address outside."""

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    ip: str = "10.1.2.3"

    def described(self) -> Object:
        """As Cyclonus reads it. Kubernetes labels each namespace with its name."""
        inside = {
            "PodLabels": self.labels,
            "NamespaceLabels": {"kubernetes.io/metadata.name": self.namespace},
            "Namespace": self.namespace,
        }
        return {"Internal": inside if self.namespace else None, "IP": self.ip}


@dataclass(frozen=True)
class Traffic:
    """One connection that is tried."""

    source: Peer
    target: Peer
    port: int
    protocol: str = "TCP"

    def described(self) -> Object:
        return {
            "Source": self.source.described(), "Destination": self.target.described(),
            "Protocol": self.protocol, "ResolvedPort": self.port, "ResolvedPortName": "",
        }  # fmt: skip


def reached(objects: list[Object], tried: Sequence[Traffic]) -> list[bool]:
    """Of each connection: the policies among the objects let it through. Raises `ClusterError`
    where Cyclonus can't be built.
    """
    with tempfile.TemporaryDirectory() as name:
        policies, traffic = Path(name) / "policies", Path(name) / "traffic.json"
        policies.mkdir()
        for policy, content in of_kind(objects, "NetworkPolicy").items():
            (policies / f"{policy}.yaml").write_text(yaml.safe_dump(content))
        traffic.write_text(json.dumps([each.described() for each in tried]))
        command = [str(installed(*CYCLONUS)), "analyze", "--mode", "query-traffic"]
        given = ["--policy-path", str(policies)] if any(policies.iterdir()) else []
        done = subprocess.run(
            [*command, *given, "--traffic-path", str(traffic)],
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
    found = re.findall(r"IS ALLOWED\?\s*\|\s*(TRUE|FALSE)", done.stdout)
    assert len(found) == len(tried), done.stdout + done.stderr
    return [each == "TRUE" for each in found]
