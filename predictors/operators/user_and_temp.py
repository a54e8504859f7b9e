"""Makes sure of a user's name and a folder for temporary files, both of which torch needs as soon
as it loads a model. A process with any uid, as some clusters start it, or on a read-only root may
lack them.
"""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import MutableMapping

from predictors.settings import InvalidSetting


def ensure_user_and_temp(environ: MutableMapping[str, str]) -> None:
    """Give a user without a name one, in `environ`, the process's environment.

    Raises `InvalidSetting` where no folder takes temporary files.
    """
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
