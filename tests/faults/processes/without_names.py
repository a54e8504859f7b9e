"""The command line's server, word for word, on a machine where no name can be looked up."""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any

resolve = socket.getaddrinfo


def numbers_only(host: Any, *args: Any, **more: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    try:
        ipaddress.ip_address(name or "127.0.0.1")
    except ValueError:
        sys.stderr.write(f"a name was looked up: {name}\n")
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution") from None
    return resolve(host, *args, **more)


if __name__ == "__main__":
    from predictors.__main__ import main

    socket.getaddrinfo = numbers_only
    sys.exit(main())
