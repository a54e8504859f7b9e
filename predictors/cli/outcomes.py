"""Exit codes of the command line, and the failure that ends a verb with one of them."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from predictors.cli.program import INTERRUPTED, raise_interrupts
from predictors.errors import FAILED_EXIT_CODE, ServingError
from predictors.observe import logs

log = logging.getLogger("predictors")

DONE, FAILED, REFUSED, NO_ROOM, NO_SERVER = 0, 1, 2, 3, 4
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of errors of a disk without room, and of a quota."""
PIPE_CLOSED = 141
EXIT_CODES: Mapping[int, str] = {
    DONE: "done, and all is well",
    FAILED: "a server refused or failed a request, a check of `smoke` failed, or a model of "
    "`status` is not ready",
    REFUSED: "the command line, a setting, a file or a checkpoint folder is wrong",
    NO_ROOM: "`check`: the folder is served, but not within the memory",
    NO_SERVER: "no server answers at the address, or what answers there is no server of this kind",
    FAILED_EXIT_CODE: "`serve`: an engine failed for good; `serve`, `activator`: a port was lost; "
    "the process should be started again",
    INTERRUPTED: "Ctrl-C",
    PIPE_CLOSED: "the reader of the output has left, as `head` does",
}  # fmt: skip


class VerbFailed(Exception):
    """A verb can't go on. `message` is one plain sentence; `status` is the HTTP status of a
    refusal, 0 without one."""

    def __init__(self, message: str, exit_code: int = FAILED, *, status: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.status = status


def run_verb(arguments: argparse.Namespace) -> int:
    """Run `arguments.run`; returns the exit code. A failure is one line, and no traceback."""
    logs.silence_grpc(arguments.environ)
    raise_interrupts()
    try:
        return int(arguments.run(arguments))
    except ServingError as error:
        return report_failure(VerbFailed(error.message, REFUSED), arguments)
    except VerbFailed as failure:
        return report_failure(failure, arguments)
    except BrokenPipeError:
        _drop_stdout()
        return PIPE_CLOSED
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        try:
            sys.stdout.flush()
        except OSError:  # the report itself went to the full disk
            _drop_stdout()
        words = os.strerror(error.errno or 0)
        return report_failure(VerbFailed(f"a file can't be written: {words}", REFUSED), arguments)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED


def _drop_stdout() -> None:
    """Let what is left of the output go nowhere: its flush at the end would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_failure(failure: VerbFailed, arguments: argparse.Namespace) -> int:
    """Print the failure, with `--json` as an object on stdout, and as a record where the log is
    JSON; returns the exit code."""
    as_json = getattr(arguments, "json", False)
    if as_json:
        error = {"message": failure.message, "exit_code": failure.exit_code}
        print_json({"error": error | ({"status": failure.status} if failure.status else {})})
    if logs.is_json():
        log.critical(failure.message)
    elif not as_json:
        sys.stdout.flush()
        sys.stderr.write(f"error: {failure.message}\n")
    return failure.exit_code


def print_report(
    arguments: argparse.Namespace,
    report: Mapping[str, Any],
    lines: Callable[[Mapping[str, Any]], Iterable[str]],
) -> None:
    """Print `report` as JSON with `--json`, or else the `lines` of it."""
    if arguments.json:
        print_json(report)
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines(report))
        sys.stdout.flush()


def print_json(report: Mapping[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(report, indent=2)}\n")
    sys.stdout.flush()
