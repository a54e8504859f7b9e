"""A gRPC server process whose core is silenced as that of `predictors serve`, or not ("loud").

Prints its port, and ends when its input does.
"""

from __future__ import annotations

import os
import sys

from predictors.observe.logs import silence_grpc

if __name__ == "__main__":
    if sys.argv[1] == "silent":
        silence_grpc(os.environ)
    from tests.http.echo import echo, serving  # imports gRPC

    with serving(echo()) as running:
        sys.stdout.write(f"{running.server.grpc_port}\n")
        sys.stdout.flush()
        sys.stdin.read()
