"""What a line of the log is: text as ever on a terminal, else JSON that any machine can read."""

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

from predictors import logs

MOMENT = 1_700_000_000.25


class Terminal(io.StringIO):
    """A stream that a person looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    before = root.handlers[:], root.level
    root.handlers.clear()  # those of pytest: `configure` would close them
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level = before
    sys.excepthook, threading.excepthook = hooks
    root.manager._clear_cache()  # type: ignore[attr-defined]


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """The log, every line of which must be an object."""
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(isinstance(line, dict) for line in found)
    return found


def test_a_record_is_one_object_with_time_level_logger_message_and_fields() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
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
    logs.configure("json", "info", stream)
    try:
        raise ValueError("half\nhalf")
    except ValueError:
        logging.getLogger("one").exception("it broke")
    (line,) = lines(stream)
    assert (line["level"], line["message"]) == ("error", "it broke")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: half\nhalf")


@pytest.mark.parametrize("odd", ["a\nb", "a\u2028b", "\ud800", '"', "\x00", "é"])
def test_whatever_is_said_stays_on_one_ascii_line(odd: str) -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    logging.getLogger("one").info("%s", odd, extra={"odd": odd, "set": {1}})
    assert stream.getvalue().isascii()
    (line,) = lines(stream)
    assert line["message"] == line["odd"] == odd


async def test_every_line_of_a_task_has_the_id_of_its_request() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    token = logs.request_id.set("r-1")
    logging.getLogger("library").warning("on the way")
    logging.getLogger("one").info("about another", extra={"request_id": "r-2"})
    logs.request_id.reset(token)
    logging.getLogger("one").info("about nobody")
    assert [line.get("request_id") for line in lines(stream)] == ["r-1", "r-2", None]


def test_warnings_and_what_nobody_catches_are_lines_too() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
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
    logs.configure(log_format, "info", stream)
    assert logs.is_json() is is_json
    logging.getLogger("one").info("hello", extra={"rows": 1})
    if not is_json:
        text = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO one hello\n"
        assert re.fullmatch(text, stream.getvalue())


def test_what_is_below_the_level_is_not_said() -> None:
    stream = io.StringIO()
    logs.configure("json", "warning", stream)
    logging.getLogger("one").info("little")
    logging.getLogger("one").warning("much")
    assert [line["message"] for line in lines(stream)] == ["much"]


def test_a_library_that_writes_by_itself_goes_the_common_way_once_adopted() -> None:
    stream, own = io.StringIO(), io.StringIO()
    logs.configure("json", "info", stream)
    library = logging.getLogger("library.that.writes")
    library.addHandler(logging.StreamHandler(own))
    library.propagate = False
    logs.adopt()
    library.warning("here")
    assert own.getvalue() == ""
    assert [line["message"] for line in lines(stream)] == ["here"]


def test_a_command_that_cannot_start_says_so_in_the_format_of_the_log() -> None:
    command = [sys.executable, "-m", "predictors", "serve", "--model=a=/"]
    run = subprocess.run(
        [*command, "--log-format=json"], capture_output=True, text=True, timeout=150, check=False
    )
    assert run.returncode == 2
    said = [json.loads(line) for line in run.stderr.splitlines()]
    assert said[-1]["level"] == "critical"
    assert "served are FluxPipeline" in said[-1]["message"]
