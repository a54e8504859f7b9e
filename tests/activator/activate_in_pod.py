"""Runs the command line as in a pod. The first argument is the folder of the ServiceAccount, the
others are the command line's own. Writes the ports to stdout as JSON once they listen.
"""

from __future__ import annotations

import json
import sys
import threading
from functools import partial
from pathlib import Path

from predictors import __main__ as root
from predictors.activator import command, server
from predictors.cluster.identity import require_pod_identity


class Told(server.ActivatorServer):
    """Tells its ports to the test."""

    def run(self) -> int:
        threading.Thread(target=self._tell, daemon=True).start()
        return super().run()

    def _tell(self) -> None:
        self.wait_started()
        ports = [self.http_port, self.grpc_port, self.health_port, self.metrics_port]
        sys.stdout.write(f"{json.dumps(ports)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    command.require_pod_identity = partial(require_pod_identity, folder=Path(sys.argv[1]))  # type: ignore[assignment]
    server.ActivatorServer = Told  # type: ignore[misc]
    sys.exit(root.main(sys.argv[2:]))
