"""KServe's storage initializer, of which PyPI has all but these lines: fetches each address into
the folder after it. Ends with 1 and the library's words where it can't.
"""

import os
import sys

from kserve_storage import Storage
from kserve_storage.logging import configure_logging


def main() -> None:
    """Arguments are address, folder, address, folder, ... as KServe's webhook gives them."""
    configure_logging()
    addresses, folders = sys.argv[1::2], sys.argv[2::2]
    if not folders or len(addresses) != len(folders):
        raise SystemExit("error: pairs of an address and a folder are needed")
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    Storage.download_files(addresses, folders)


if __name__ == "__main__":
    main()
