"""Log output: text on a terminal, one JSON object per line for machines.

Structured fields are passed as `extra={"model": ...}`. The JSON format writes them beside `ts`,
`level`, `logger`, `message` and `request_id`; the text format leaves them out. Records are
formatted on the thread that logs and written by another one, so that logging never waits for a
reader.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from functools import lru_cache
from logging.handlers import QueueHandler
from types import TracebackType
from typing import TextIO

from predictors.observe.line_writer import LineStream, LineWriter

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that the current task serves. The protocols set it."""

trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""Id of the request's trace if it is sampled."""

log = logging.getLogger("predictors")

_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


_encode = json.JSONEncoder(default=str).encode  # `json.dumps` would make an encoder for each line


@lru_cache(2)
def _utc(second: int) -> str:
    """The date and time of a second since 1970."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


class JsonFormatter(logging.Formatter):
    """One JSON object per record. A traceback is the field `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if known := request_id.get():
            line["request_id"] = known
        if known := trace_id.get():
            line["trace_id"] = known
        line |= {k: v for k, v in vars(record).items() if k not in _ORDINARY}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        # ASCII, so that a caller's text adds neither a line separator nor half a character
        return _encode(line)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """UTC to the millisecond, as `2026-01-31T23:59:59.123Z`."""
        return f"{_utc(int(record.created))}.{int(record.msecs):03d}Z"


class LineHandler(QueueHandler):
    """Formats a record on the thread that logs it and passes the line to a `LineWriter`."""

    def __init__(self, stream: TextIO, on_drop: Callable[[int], object]) -> None:
        self.writer = LineWriter(stream, self._note, on_drop)
        super().__init__(self.writer)  # type: ignore[arg-type]

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the handler's lock, which a flush may hold for seconds."""
        wanted = self.filter(record)
        if wanted:
            self.emit(wanted if isinstance(wanted, logging.LogRecord) else record)
        return bool(wanted)

    def prepare(self, record: logging.LogRecord) -> tuple[str, bool]:
        """The line, and True if it is important."""
        return f"{self.format(record)}\n", record.levelno >= logging.ERROR

    def enqueue(self, record: tuple[str, bool]) -> None:  # type: ignore[override]
        line, is_important = record
        self.writer.put(line, keep=is_important, hurry=is_important)

    def flush(self) -> None:
        """Wait until the lines are written, at most for `FLUSH_S`."""
        if self._is_stderr():
            sys.stderr.flush()
        self.writer.flush()

    def close(self) -> None:
        """Flush, and restore stderr unless its reader is stuck."""
        is_stderr = self._is_stderr()
        if is_stderr:
            sys.stderr.flush()
        if self.writer.close() and is_stderr:
            sys.stderr = self.writer.stream
        super().close()

    def _is_stderr(self) -> bool:
        return isinstance(sys.stderr, LineStream) and sys.stderr.writer is self.writer

    def _note(self, count: int) -> str:
        words = "%d lines of the log are missing here: they came faster than they were read"
        fields = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
        record = logging.makeLogRecord({**fields, "msg": words, "args": (count,), "dropped": count})
        return f"{self.format(record)}\n"


def configure_logging(
    log_format: str,
    level: str,
    stream: TextIO | None = None,
    on_drop: Callable[[int], object] = lambda count: None,
) -> None:
    """Log to `stream` (stderr) in `log_format`: `text`, `json`, or `auto`, which is text on a
    terminal. In JSON, Python's warnings and uncaught exceptions are lines too.

    `sys.stderr` is replaced by a stream that never blocks. `on_drop` is called with numbers of
    lines that were dropped because they were not read.
    """
    own = stream or sys.stderr
    if isinstance(own, LineStream):  # configured before
        own = own.writer.stream
    if log_format == "auto":
        log_format = "text" if own.isatty() else "json"
    # no line shows these, and looking them up costs each one time
    logging.logProcesses = logging.logThreads = logging.logMultiprocessing = False
    handler = LineHandler(own, on_drop)
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if stream is None:
        own.flush()
        sys.stderr = LineStream(handler.writer)
    if log_format == "json":
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = _uncaught_in_thread


def open_missing_streams() -> None:
    """Open the null device for each of stdin, stdout and stderr that the process was started
    without. Otherwise the next file or socket gets its number, and what libraries print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # takes the lowest free number, which is this one; child processes inherit it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def is_json() -> bool:
    return any(isinstance(h.formatter, JsonFormatter) for h in logging.getLogger().handlers)


def silence_grpc(environ: MutableMapping[str, str]) -> None:
    """Keep gRPC's core from writing to stderr. It writes a line for each call with a head that it
    can't parse, past all handlers, and waits where stderr is a full pipe.

    `environ` is the process's environment. Called before gRPC is imported. An operator's own
    `GRPC_VERBOSITY` stays.
    """
    environ.setdefault("GRPC_VERBOSITY", "NONE")


def redirect_library_handlers() -> None:
    """Remove handlers of libraries that write to the terminal themselves, so that their lines go to
    the root handler. Must be called after the libraries are imported."""
    for logger in logging.root.manager.loggerDict.values():
        if not isinstance(logger, logging.Logger):
            continue
        for handler in logger.handlers[:]:
            if type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)
                logger.propagate = True


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    error = args.exc_value
    if error is not None:
        name = args.thread.name if args.thread is not None else "a thread"
        log.critical("uncaught %s in %s", args.exc_type.__name__, name, exc_info=error)
