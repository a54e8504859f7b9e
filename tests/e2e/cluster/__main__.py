"""`python -m tests.e2e.cluster`: build, up, down, run, with, load, status, component, gpus, suite.
Turns a `ClusterError` into a sentence and exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tests.e2e.cluster import building, control, crds, images, lifecycle, suite
from tests.e2e.cluster.identities import NODE
from tests.e2e.cluster.places import ClusterError, saved_site

GPU = "nvidia.com/gpu"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tests.e2e.cluster", description=__doc__)
    verbs = made.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("build", help="build what is missing into the machine's cache")
    build.add_argument("--only", help="names with commas, such as helm,kube")
    for name in ("up", "with"):
        verb = verbs.add_parser(name)
        verb.add_argument("--no-keda", dest="keda", action="store_false")
        if name == "with":
            verb.add_argument("command", nargs="+", help="-- CMD: run it, then take down")
    verbs.add_parser("down", help="end everything; works after a crash too")
    verbs.add_parser("status", help="which components run")
    verbs.add_parser("run", help="-- CMD: in the network namespace").add_argument(
        "command", nargs="+"
    )
    verbs.add_parser("load", help="import an image archive").add_argument("archive", type=Path)
    component = verbs.add_parser("component", help="stop or start one component")
    component.add_argument("action", choices=("stop", "start"))
    component.add_argument("name")
    gpus = verbs.add_parser("gpus", help="pretend that the node has GPUs")
    gpus.add_argument("count", type=int)
    whole = verbs.add_parser("suite", help="build, images, up, -- PYTEST ARGUMENTS, down")
    whole.add_argument("tests", nargs="*", default=["tests/e2e"])
    return made


def set_gpus(count: int) -> int:
    """Patch the node's capacity; the kubelet makes it allocatable. Raises `ClusterError`."""
    patch = json.dumps({"status": {"capacity": {GPU: str(count)}}})
    words = ("patch", "node", NODE, "--subresource=status", "--type=merge", "-p", patch)
    return lifecycle.run(["kubectl", *words])


def obey(arguments: argparse.Namespace) -> int:
    """Do what the command line says; an exit code. Raises `ClusterError`."""
    match arguments.verb:
        case "build":
            print(building.build(arguments.only))
            if arguments.only is None:
                crds.fetch_all()
        case "up":
            lifecycle.up(arguments.keda)
        case "down":
            print(f"down in {lifecycle.down():.1f} s")
        case "status":
            print(json.dumps(control.ask("status"), indent=1))
        case "run":
            return lifecycle.run(arguments.command)
        case "with":
            return lifecycle.with_cluster(arguments.command, arguments.keda)
        case "load":
            print(images.load(saved_site(), arguments.archive))
        case "component":
            control.ask(arguments.action, arguments.name)
        case "gpus":
            return set_gpus(arguments.count)
        case "suite":
            lifecycle.need_root()
            lifecycle.need_none()
            lifecycle.exit_on_signals()
            return suite.run_suite(arguments.tests)
    return 0


def main() -> int:
    """Parse, obey, and say how long it took where that is of interest."""
    arguments = parser().parse_args()
    start = time.monotonic()
    try:
        code = obey(arguments)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.verb in {"build", "up", "load"}:
        print(f"{arguments.verb} took {time.monotonic() - start:.1f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
