"""A server process like the command line's, with a scripted engine that stdin controls.

The argument is JSON: `server` and `queue` are settings, `open` lets all steps pass. Each line of
stdin is a command: `steps N` allows N steps, `open` allows all. Stdout gets a line for each
accepted request. Ends with the server's exit code.
"""

from __future__ import annotations

import json
import sys
import threading

from predictors import metrics
from predictors.observe import logs
from predictors.protocol.http.connection_limits import raise_file_limit
from predictors.protocol.server import PredictorServer
from tests.fakes import ScriptedEngine
from tests.http.echo import TaskPredictor, small_settings
from tests.http.serve_held import obey


def announce(model: TaskPredictor) -> None:
    while model.submitted.acquire():  # without a limit: the test ends the process
        sys.stdout.write("accepted\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    logs.configure_logging("text", "info", on_drop=metrics.log_records_dropped_total.inc)
    raise_file_limit()
    settings = small_settings(server=asked.get("server"), queue=asked.get("queue"))
    held = ScriptedEngine(slots=1, gated=not asked.get("open", False))
    echo = TaskPredictor("echo", held, settings)
    threading.Thread(target=obey, args=(held,), daemon=True).start()
    threading.Thread(target=announce, args=(echo,), daemon=True).start()
    sys.exit(PredictorServer([echo], settings).run())
