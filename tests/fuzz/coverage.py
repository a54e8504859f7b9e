"""Checks one target with inputs that atheris makes to reach new branches, in a process of its own.

    python -m tests.fuzz.coverage TARGET [libFuzzer's options] CORPUS...

Only this package's modules are instrumented. Inputs that reach new branches are added to the first
folder; an input with a finding ends the process with a traceback.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["predictors.protocol"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    _, target, *options = sys.argv
    command = (
        f"{sys.executable} -m tests.fuzz.coverage {target}"  # with which -merge=1 starts itself
    )
    atheris.Setup([command, *options], lambda raw: TARGETS[target](raw) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
