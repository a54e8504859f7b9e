"""A server process with a scripted engine that stdin controls.

Prints its ports as JSON once it listens. Each line of stdin is a command: `steps N` allows N steps,
`open` allows all. Ends with the server's exit code.
"""

from __future__ import annotations

import json
import sys
import threading

from predictors.observe import logs
from predictors.protocol.server import PredictorServer
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, TaskPredictor, small_settings


def obey(engine: ScriptedEngine) -> None:
    for line in sys.stdin:
        verb, _, number = line.strip().partition(" ")
        if verb == "open":
            engine.open()
        else:
            engine.allow(int(number))


def announce(server: PredictorServer, model: TaskPredictor) -> None:
    server.wait_started(PATIENCE_S)
    model.host.wait_ready(PATIENCE_S)
    sys.stdout.write(json.dumps([server.http_port, server.grpc_port]) + "\n")
    sys.stdout.flush()
    while model.submitted.acquire():  # without a limit: the test ends the process
        sys.stdout.write("accepted\n")
        sys.stdout.flush()


if __name__ == "__main__":
    logs.configure_logging("text", "info")
    drain_timeout_s, linger_s = map(float, sys.argv[1:])
    settings = small_settings(server={"drain_timeout_s": drain_timeout_s, "linger_s": linger_s})
    held = ScriptedEngine(slots=1)
    echo = TaskPredictor("echo", held, settings)
    own = PredictorServer([echo], settings)
    threading.Thread(target=obey, args=(held,), daemon=True).start()
    threading.Thread(target=announce, args=(own, echo), daemon=True).start()
    sys.exit(own.run())
