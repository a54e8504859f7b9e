"""The command line as in a pod: its ServiceAccount lies where the first argument says, the others
are the command line's own. Everything else is the product's.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from predictors import __main__ as root
from predictors.cluster.account import find_account

if __name__ == "__main__":
    root.find_account = partial(find_account, folder=Path(sys.argv[1]))  # type: ignore[assignment]
    sys.exit(root.main(sys.argv[2:]))
