"""Flags of the verbs that are clients: `draw`, `ask`, `smoke`, `bench`, `status`, `completion`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

N = TypeVar("N", int, float)

PROTOCOLS = ("kitty", "iterm2", "sixel")
"""Of pictures in terminals; `terminal_pictures` speaks them."""

JSON_HELP = "print a report as JSON, failures too"


def positive_number(text: str) -> float:
    """A finite number above 0, for argparse."""
    return _number(text, float, 0, "a number above 0")


def positive_count(text: str) -> int:
    """A whole number above 0, for argparse."""
    return _number(text, int, 0, "a whole number above 0")


def round_count(text: str) -> int:
    """Two rounds at least: one has no spread."""
    return _number(text, int, 1, "a whole number of at least 2")


def _number(text: str, read: Callable[[str], N], above: float, wanted: str) -> N:
    try:
        value = read(text)
        if above < value < math.inf:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")


def server_flags(verb: argparse.ArgumentParser) -> None:
    """The flags of a verb that asks a server."""
    verb.add_argument(
        "--url", help="address of the server (default: PREDICTORS_URL, or http://127.0.0.1:8080)"
    )
    request_flags(verb)


def request_flags(verb: argparse.ArgumentParser) -> None:
    """The flags of every request."""
    verb.add_argument("--key", help="API key (default: PREDICTORS_KEY, which `ps` does not show)")
    verb.add_argument(
        "--timeout",
        type=positive_number,
        default=600.0,
        metavar="SECONDS",
        help="for one answer, or silence within one (default: 600)",
    )
    json_flag(verb)


def json_flag(verb: argparse.ArgumentParser) -> None:
    """The flag of every verb that has a report."""
    verb.add_argument("--json", action="store_true", help=JSON_HELP)


def _source_flags(verb: argparse.ArgumentParser) -> None:
    server_flags(verb)
    verb.add_argument(
        "--model",
        dest="own",
        type=Path,
        metavar="FOLDER",
        help="load this checkpoint folder and ask it in this process, without a server",
    )
    verb.add_argument("--name", help="model of the server (default: the first that can)")
    verb.add_argument(
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further field of the request, such as top_p=0.9; may be repeated",
    )


def draw_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("prompt", metavar="PROMPT", help="the picture in words")
    verb.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE",
        help="file for the picture; its end says the format: .png, .jpg, .webp",
    )  # fmt: skip
    _source_flags(verb)
    verb.add_argument("--size", metavar="WIDTHxHEIGHT", help="size (default: the model's own)")
    verb.add_argument("--steps", type=positive_count, help="denoise steps (default: the model's)")
    verb.add_argument("--seed", type=int, help="seed (default: random)")
    verb.add_argument("--tier", help="lossless, high or turbo (default: the server's)")
    verb.add_argument("--guidance", type=float, metavar="SCALE", help="guidance scale")
    verb.add_argument("--negative", metavar="PROMPT", help="negative prompt")
    verb.add_argument(
        "--show",
        choices=("auto", "never", *PROTOCOLS),
        default="auto",
        help="show the picture in the terminal, unless piped (default: auto, where it can)",
    )


def ask_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("picture", type=Path, metavar="PICTURE", help="a picture's file, - for stdin")
    verb.add_argument("question", metavar="QUESTION", help="the question about it")
    _source_flags(verb)
    verb.add_argument("--max-tokens", type=positive_count, help="most tokens of the answer")
    verb.add_argument("--temperature", type=float, help="0 is the likeliest answer")
    verb.add_argument("--seed", type=int, help="seed of the choice of tokens")


def bench_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("url", metavar="URL", help="an OpenAI or V2 server")
    verb.add_argument(
        "--compare", metavar="URL2", help="a second server: both are loaded in turns, and compared"
    )
    verb.add_argument(
        "--rounds", type=round_count, default=6, help="turns of each with --compare (default: 6)"
    )
    loop = verb.add_mutually_exclusive_group()
    loop.add_argument(
        "--rate", type=positive_number, help="open loop: arrivals per second, a Poisson process"
    )
    loop.add_argument(
        "--clients", type=positive_count, default=4, help="closed loop: clients (default: 4)"
    )
    verb.add_argument(
        "--seconds", type=positive_number, default=30.0, help="per server (default: 30)"
    )
    verb.add_argument("--requests", type=positive_count, help="at most so many per server")
    verb.add_argument("--mix", type=Path, metavar="FILE", help="requests, as JSON or YAML")
    verb.add_argument(
        "--kind", choices=("chat", "images", "v2"), default="chat", help="without a mix: the route"
    )
    verb.add_argument("--name", help="model (default: the server's first of the kind)")
    verb.add_argument(
        "--prompt", action="append", default=[], help="without a mix: a prompt; may be repeated"
    )
    verb.add_argument("--picture", type=Path, metavar="FILE", help="a picture beside each prompt")
    verb.add_argument("--max-tokens", type=positive_count, help="most tokens of an answer")
    verb.add_argument(
        "--parameter", action="append", default=[], metavar="NAME=VALUE",
        help="a further field of each request; may be repeated",
    )  # fmt: skip
    verb.add_argument(
        "--goodput", nargs="+", default=[], metavar="GOAL",
        help="milliseconds that an answer must keep to count: ttft:500 tpot:50 latency:2000",
    )  # fmt: skip
    verb.add_argument("--seed", type=int, default=0, help="of arrivals and choices (default: 0)")
    verb.add_argument("--plot", type=Path, metavar="FILE.svg", help="write the distributions")
    request_flags(verb)


def smoke_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("url", metavar="URL", help="the server")
    verb.add_argument("--grpc-port", type=int, metavar="PORT", help="try gRPC there, too")
    request_flags(verb)


def status_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-n", "--namespace", help="namespace (default: that of the context)")
    verb.add_argument(
        "-l", "--selector", default="app.kubernetes.io/part-of=vision-predictors",
        help="label selector (default: the chart's InferenceServices)",
    )  # fmt: skip
    verb.add_argument(
        "--kubeconfig", type=Path, metavar="FILE", help="(default: KUBECONFIG, or ~/.kube/config)"
    )
    verb.add_argument("--context", help="context of the kubeconfig (default: its current one)")
    verb.add_argument(
        "--timeout", type=positive_number, default=10.0, metavar="SECONDS",
        help="for one answer of the API server (default: 10)",
    )  # fmt: skip
    json_flag(verb)


def completion_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
