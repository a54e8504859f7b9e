"""The command line's grammar: verbs, flags and what they mean to a person. Knows no verb's work: it
is given one function for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from predictors import __version__
from predictors.errors import InvalidRequest

Verb = Callable[[argparse.Namespace], int]


def parse(argv: Sequence[str] | None, verbs: Mapping[str, Verb]) -> argparse.Namespace:
    """The arguments, with `run`, the verb's function; ends the process on a wrong command line.

    `verbs` has `serve`, `warm`, `demo` and `quantize`; their docstrings are their descriptions.
    """
    parser = argparse.ArgumentParser(
        prog="python -m predictors", description="Serve FLUX.1 and Qwen2.5-VL through KServe."
    )
    parser.add_argument("--version", action="version", version=f"vision-predictors {__version__}")
    adding = parser.add_subparsers(required=True, metavar="verb")
    for name, (about, add_flags) in GRAMMAR.items():
        run = verbs[name]
        verb = adding.add_parser(name, help=about, description=run.__doc__)
        add_flags(verb)
        verb.set_defaults(run=run)
    return parser.parse_args(argv)


def named_path(raw: str) -> tuple[str, Path]:
    """`NAME=PATH` in two; raises `InvalidRequest`, also when there is no such folder."""
    name, separator, path = raw.partition("=")
    if not separator or not name or not path:
        raise InvalidRequest(f"--model takes NAME=PATH, not {raw!r}")
    if not Path(path).is_dir():
        raise InvalidRequest(f"--model {name}: there is no folder {path!r}")
    return name, Path(path)


def _serve_flags(verb: argparse.ArgumentParser) -> None:
    _warm_flags(verb)
    verb.add_argument("--host", help="address to bind (default: HOST or 127.0.0.1)")
    verb.add_argument(
        "--port", type=int, help="HTTP port, 0 for a free one (default: PORT or 8080)"
    )
    verb.add_argument(
        "--grpc-port",
        type=int,
        help="gRPC port, 0 for a free one, -1 for none (default: GRPC_PORT or 8081)",
    )


def _warm_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="a model; may be repeated",
    )
    verb.add_argument(
        "--log-format",
        choices=("auto", "text", "json"),
        help="auto is text on a terminal, JSON otherwise (default: PREDICTORS_SERVER_LOG_FORMAT)",
    )


def _demo_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "prompt", nargs="*", metavar="PROMPT", help="what to draw (default: two scenes)"
    )
    verb.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for pictures and log (default: out)"
    )


def _quantize_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("source", type=Path, metavar="SOURCE", help="a folder in diffusers layout")
    verb.add_argument("target", type=Path, metavar="TARGET", help="a folder that is not there yet")


GRAMMAR: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "serve": ("serve checkpoints over REST and gRPC", _serve_flags),
    "warm": ("compile for checkpoints, keep it for later starts, and end", _warm_flags),
    "demo": ("show both embedded models at work", _demo_flags),
    "quantize": ("copy a FLUX checkpoint into fp8", _quantize_flags),
}
