"""Log lines are text on a terminal and JSON otherwise."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from predictors.observe import line_writer, logs

PATIENCE_S = 180.0
MOMENT = 1_700_000_000.25


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(line_writer.LineWriter.flush, "__defaults__", (PATIENCE_S,))
    before = root.handlers[:], root.level
    root.handlers.clear()  # those of pytest: `configure` would close them
    yield
    logging.captureWarnings(False)
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level = before
    sys.excepthook, threading.excepthook = hooks
    root.manager._clear_cache()  # type: ignore[attr-defined]


def flush() -> None:
    """Flush the log."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """The lines of the log as JSON objects."""
    flush()
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(isinstance(line, dict) for line in found)
    return found


def test_a_record_is_one_object_with_time_level_logger_message_and_fields() -> None:
    stream = io.StringIO()
    logs.configure_logging("json", "info", stream)
    logging.getLogger("one").info("two %d", 3, extra={"rows": 4, "tier": "high"})
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    assert line == {
        "level": "info",
        "logger": "one",
        "message": "two 3",
        "rows": 4,
        "tier": "high",
    }


def test_the_time_is_utc_to_the_millisecond() -> None:
    record = logging.makeLogRecord({"created": MOMENT, "msecs": 250.0})
    assert json.loads(logs.JsonFormatter().format(record))["ts"] == "2023-11-14T22:13:20.250Z"


def test_a_traceback_is_one_field_of_the_same_line() -> None:
    stream = io.StringIO()
    logs.configure_logging("json", "info", stream)
    try:
        raise ValueError("half\nhalf")
    except ValueError:
        logging.getLogger("one").exception("it broke")
    (line,) = lines(stream)
    assert (line["level"], line["message"]) == ("error", "it broke")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: half\nhalf")


@pytest.mark.parametrize("odd", ["a\nb", "a\u2028b", "\ud800", '"', "\x00", "é"])
def test_any_message_stays_on_one_ascii_line(odd: str) -> None:
    stream = io.StringIO()
    logs.configure_logging("json", "info", stream)
    logging.getLogger("one").info("%s", odd, extra={"odd": odd, "set": {1}})
    (line,) = lines(stream)
    assert stream.getvalue().isascii()
    assert line["message"] == line["odd"] == odd


async def test_every_line_of_a_task_has_the_id_of_its_request() -> None:
    stream = io.StringIO()
    logs.configure_logging("json", "info", stream)
    token = logs.request_id.set("r-1")
    logging.getLogger("library").warning("on the way")
    logging.getLogger("one").info("about another", extra={"request_id": "r-2"})
    logs.request_id.reset(token)
    logging.getLogger("one").info("about nobody")
    assert [line.get("request_id") for line in lines(stream)] == ["r-1", "r-2", None]


def test_warnings_and_uncaught_exceptions_are_lines_too() -> None:
    stream = io.StringIO()
    logs.configure_logging("json", "info", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    thread = threading.Thread(target=lambda: 1 // 0, name="worker")
    thread.start()
    thread.join()
    sys.excepthook(KeyError, KeyError("k"), None)
    warned, in_thread, uncaught = lines(stream)
    assert warned["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in warned["message"]
    assert in_thread["message"] == "uncaught ZeroDivisionError in worker"
    assert "ZeroDivisionError" in in_thread["exception"]
    assert (uncaught["level"], uncaught["exception"]) == ("critical", "KeyError: 'k'")


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"),
    [
        ("auto", Terminal(), False),
        ("auto", io.StringIO(), True),
        ("text", io.StringIO(), False),
        ("json", Terminal(), True),
    ],
)
def test_auto_is_text_on_a_terminal_and_json_otherwise(
    log_format: str, stream: io.StringIO, is_json: bool
) -> None:
    logs.configure_logging(log_format, "info", stream)
    assert logs.is_json() is is_json
    logging.getLogger("one").info("hello", extra={"rows": 1})
    if not is_json:
        flush()
        text = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO one hello\n"
        assert re.fullmatch(text, stream.getvalue())


def test_records_below_the_level_are_not_logged() -> None:
    stream = io.StringIO()
    logs.configure_logging("json", "warning", stream)
    logging.getLogger("one").info("little")
    logging.getLogger("one").warning("much")
    assert [line["message"] for line in lines(stream)] == ["much"]


def test_handlers_of_libraries_are_redirected() -> None:
    stream, own = io.StringIO(), io.StringIO()
    logs.configure_logging("json", "info", stream)
    library = logging.getLogger("library.that.writes")
    library.addHandler(logging.StreamHandler(own))
    library.propagate = False
    logs.redirect_library_handlers()
    library.warning("here")
    assert own.getvalue() == ""
    assert [line["message"] for line in lines(stream)] == ["here"]


class Paper:
    """Formats as its current value."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __str__(self) -> str:
        return self.words


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_has_the_values_of_the_time_of_logging(log_format: str) -> None:
    stream, paper, names = io.StringIO(), Paper("then"), ["then"]
    logs.configure_logging(log_format, "info", stream)
    logging.getLogger("one").info("%s %s", paper, names, extra={"names": names})
    paper.words = names[0] = "later"
    flush()
    assert "then ['then']" in stream.getvalue()
    assert "later" not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_record_that_cannot_be_formatted_is_harmless(
    log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, complaints = io.StringIO(), io.StringIO()
    logs.configure_logging(log_format, "info", stream)
    monkeypatch.setattr(sys, "stderr", complaints)
    logging.getLogger("one").info("%d", "no number")
    logging.getLogger("one").info("next")
    flush()
    assert stream.getvalue().count("\n") == 1
    assert "next" in stream.getvalue()
    assert "--- Logging error ---" in complaints.getvalue()


def test_dropped_lines_are_noted_in_the_format_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_writer, "MAX_LINES", 0)
    stream, dropped = io.StringIO(), list[int]()
    logs.configure_logging("json", "info", stream, dropped.append)
    for _ in range(3):
        logging.getLogger("one").info("hello")
    (note,) = lines(stream)
    assert re.fullmatch(r"\d{4}-.*Z", note.pop("ts"))
    assert note == {
        "level": "warning",
        "logger": "predictors.observe.logs",
        "message": "3 lines of the log are missing here: they came faster than they were read",
        "dropped": 3,
    }
    assert dropped == [1, 1, 1]


SHOUTING = """
import logging, sys, threading, warnings
from predictors.observe import line_writer, logs
logs.configure_logging(sys.argv[1], "info")
logs.configure_logging(sys.argv[1], "info")
logging.getLogger("one").info("logged")
print("printed", file=sys.stderr)
warnings.warn("warned", stacklevel=1)
thread = threading.Thread(target=lambda: 1 // 0)
thread.start()
thread.join()
logging.getLogger("one").info("logged again")
sys.stderr.write("unfinished")
raise KeyError("uncaught")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_process_that_ends_has_written_everything_in_order(log_format: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOUTING, log_format],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    words = ("logged", "printed", "warned", "ZeroDivisionError", "logged again", "KeyError")
    places = [done.stderr.find(word) for word in words]
    assert -1 not in places
    assert places == sorted(places)
    assert "unfinished" in done.stderr


STUCK = """
import logging, os, signal, sys
from predictors.observe import line_writer, logs
logs.configure_logging("text", "info")
logging.getLogger("one").info("%s", "x" * 200_000)
print("logged", flush=True)
line_writer.LineWriter.flush.__defaults__ = (0.1,)  # instead of FLUSH_S
end = sys.argv[1]
if end == "exit":
    sys.exit(3)
elif end == "uncaught":
    raise KeyError("uncaught")
elif end == "shutdown":
    logging.shutdown()
    os._exit(3)
elif end == "said":
    sys.stderr.write("error: " + "y" * 200_000)
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("end", "code"), [("exit", 3), ("uncaught", 1), ("shutdown", 3), ("said", 3)]
)
def test_a_process_ends_while_its_stderr_is_not_read(end: str, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, end], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.wait(PATIENCE_S) == code
    finally:
        process.kill()
        process.communicate()


def test_a_failed_start_is_logged_in_the_format_of_the_log() -> None:
    command = [sys.executable, "-m", "predictors", "serve", "--model=a=/"]
    run = subprocess.run(
        [*command, "--log-format=json"], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 2
    said = [json.loads(line) for line in run.stderr.splitlines()]
    assert said[-1]["level"] == "critical"
    assert "served are FluxPipeline" in said[-1]["message"]


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-", ""])
def test_missing_streams_lead_to_the_null_device(closed: str) -> None:
    code = (
        "import os, socket, subprocess, sys; from predictors.observe import logs;"
        "logs.open_missing_streams(); own = socket.socket(); assert own.fileno() > 2;"
        "child = [sys.executable, '-c', 'import os; os.dup(0); os.dup(1); os.dup(2)'];"
        "subprocess.run(child, check=True);"
        "print('said', file=sys.stdout); print('said', file=sys.stderr); sys.stdin.close();"
        "os._exit(7)"
    )
    command = f'exec "$@" {closed}'
    run = subprocess.run(["bash", "-c", command, "bash", sys.executable, "-c", code], check=False)
    assert run.returncode == 7
