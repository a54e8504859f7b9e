"""A server process that logs like `python -m predictors serve`.

Prints its port as JSON once it is ready, then a line for each accepted request. Ends with the
server's exit code. The arguments are the limits of lines and bytes that wait for stderr, and
whether the engine is `open` or `held`.
"""

from __future__ import annotations

import json
import sys
import threading

from predictors import metrics
from predictors.observe import line_writer, logs
from predictors.protocol.server import PredictorServer
from tests.fakes import ScriptedEngine
from tests.http.echo import PATIENCE_S, TaskPredictor, small_settings


def announce(server: PredictorServer, model: TaskPredictor) -> None:
    server.wait_started(PATIENCE_S)
    model.host.wait_ready(PATIENCE_S)
    sys.stdout.write(json.dumps(server.http_port) + "\n")
    sys.stdout.flush()
    while model.submitted.acquire():  # without a limit: the test ends the process
        sys.stdout.write("accepted\n")
        sys.stdout.flush()


if __name__ == "__main__":
    line_writer.MAX_LINES, line_writer.MAX_BYTES = map(int, sys.argv[1:3])
    logs.configure_logging("json", "info", on_drop=metrics.log_records_dropped_total.inc)
    settings = small_settings()
    model = TaskPredictor("echo", ScriptedEngine(gated=sys.argv[3] == "held"), settings)
    own = PredictorServer([model], settings)
    threading.Thread(target=announce, args=(own, model), daemon=True).start()
    sys.exit(own.run())
