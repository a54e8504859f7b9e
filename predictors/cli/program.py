"""The command line as a program: from its first line on, Ctrl-C ends it with one word, no traceback
and exit code 130. Imports almost nothing, since it comes before the imports that take long.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


def run() -> NoReturn:
    """The command `predictors`: the same as `python -m predictors`."""
    end_at_interrupts()
    runpy.run_module("predictors", run_name="__main__", alter_sys=True)
    sys.exit()  # not reached: the module ends the process


def end_at_interrupts() -> None:
    """Let Ctrl-C end the process at once, until `raise_interrupts`: an exception in the middle of
    an import shows a traceback. Where SIGINT is ignored, as in a shell's background, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_process)


def raise_interrupts() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` from now on, so that a verb can clean up. Changes
    nothing in a process that did not call `end_at_interrupts`."""
    if signal.getsignal(signal.SIGINT) is _end_process:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_process(exit_code: int) -> NoReturn:
    """End the process with the exit code of a verb.

    After Ctrl-C it ends without waiting for threads, and so that the code stands: Python would end
    by the signal if the exception came up in code that was compiled from a text, as dataclasses
    are.
    """
    if exit_code != INTERRUPTED:
        sys.exit(exit_code)
    import logging

    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # its reader has left
            stream.flush()
    os._exit(exit_code)


def _end_process(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
