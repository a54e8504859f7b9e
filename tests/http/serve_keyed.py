"""Serves an echo model with the settings of the environment; prints its ports once it is ready."""

from __future__ import annotations

import os
import sys
import threading

from predictors.environment import from_env
from predictors.protocol.server import PredictorServer
from tests.http.echo import PATIENCE_S, echo


def main() -> int:
    settings = from_env(os.environ)
    model = echo("echo", settings)
    server = PredictorServer([model], settings)

    def report() -> None:
        server.wait_started(PATIENCE_S)
        model.host.wait_ready(PATIENCE_S)
        sys.stdout.write(f"{server.http_port} {server.grpc_port}\n")
        sys.stdout.flush()

    threading.Thread(target=report).start()
    return server.run()


if __name__ == "__main__":
    sys.exit(main())
