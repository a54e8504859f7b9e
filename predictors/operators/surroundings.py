"""The user's name and the folder for temporary files, which torch needs as soon as it loads a
model. A process with any uid, as some clusters start it, or on a read-only root may have neither.
gRPC's own lines on stderr are turned off.
"""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import MutableMapping

from predictors.observe.logs import silence_grpc
from predictors.settings import InvalidSetting


def prepare_surroundings(environ: MutableMapping[str, str]) -> None:
    """Give a user without a name one, in `environ`, the process's environment, and silence gRPC.

    Raises `InvalidSetting` where no folder takes temporary files.
    """
    silence_grpc(environ)
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InvalidSetting(
            "TMPDIR, /tmp and /var/tmp can't be written, and torch needs a folder for temporary "
            "files; set TMPDIR to one"
        ) from error
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        environ["USER"] = f"uid-{os.getuid()}"
