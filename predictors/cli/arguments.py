"""The grammar of the command line: verbs, flags and their help texts. The functions of the verbs
are passed in.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import IO

from predictors import __version__
from predictors.cli import client_flags
from predictors.cli.activator_flags import activator_flags
from predictors.cli.foreign_flags import advice_of
from predictors.cli.named_values import named_aliases
from predictors.cli.outcomes import DISK_FULL
from predictors.errors import InvalidRequest

Verb = Callable[[argparse.Namespace], int]

PROMPT = "a lighthouse on a cliff at dusk"


def parse(
    argv: Sequence[str] | None, verbs: Mapping[str, Verb], served: Sequence[str]
) -> argparse.Namespace:
    """The parsed arguments, with the verb's function as `run`. Exits on a wrong command line.

    `verbs` has a function for each verb of `GRAMMAR`. Its docstring is the verb's description.
    `served` are the architectures that a message about a missing model names.
    """
    arguments, left = make_parser(verbs).parse_known_args(argv)
    if left:
        hint = "; models are given as --model NAME=PATH" if "model" in arguments else ""
        hint = advice_of(left) or hint
        arguments.usage_error(f"unrecognized arguments: {' '.join(left)}{hint}")
    if "model" in arguments and not arguments.model:
        arguments.usage_error(f"--model NAME=PATH is required: the folder of a {', '.join(served)}")
    if getattr(arguments, "aliases", None):
        arguments.aliases = named_aliases(arguments.aliases, arguments.model)
    return arguments


def make_parser(verbs: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="predictors", description="Serve FLUX.1 and Qwen-VL through KServe."
    )
    parser.add_argument("--version", action="version", version=f"vision-predictors {__version__}")
    adding = parser.add_subparsers(required=True, metavar="verb")
    for name, (about, add_flags) in GRAMMAR.items():
        run = verbs[name]
        verb = adding.add_parser(name, help=about, description=run.__doc__)
        add_flags(verb)
        verb.set_defaults(run=run, usage_error=verb.error)
    return parser


def read_file(path: Path) -> bytes:
    """The content of a file; raises `InvalidRequest` if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{str(path)!r} can't be read: {error.strerror}") from error


SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([KMGT]i?)?B?", re.IGNORECASE)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def read_size(text: str) -> int:
    """Bytes of `24GiB`, `24GB`, `24Gi` or a number of bytes. Raises `InvalidRequest`."""
    found = SIZE.fullmatch(text.strip())
    num_bytes = int(float(found[1]) * UNITS[(found[2] or "").upper()]) if found else 0
    if num_bytes < 2**20:
        raise InvalidRequest(f"--memory takes a size such as 24GiB, not {text!r}")
    return num_bytes


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that replaces `path` if the block ends without an exception.

    Creates the folders. Raises `InvalidRequest` before the block if `path` can't be written, and
    after it if the disk was too small.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("wb")
    except OSError as error:
        raise InvalidRequest(f"{str(path)!r} can't be written: {error.strerror}") from error
    try:
        with file:
            yield file
        part.replace(path)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise InvalidRequest(f"{str(path)!r} can't be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _serve_flags(verb: argparse.ArgumentParser) -> None:
    _model_flags(verb)
    verb.add_argument(
        "--served-model-name",
        "--alias",
        dest="aliases",
        action="append",
        metavar="ALIAS[=NAME]",
        help="a further name of a model, or of the only one; repeatable (default: "
        "PREDICTORS_SERVER_ALIASES)",
    )
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
    _model_flags(verb)
    client_flags.json_flag(verb)


def _model_flags(verb: argparse.ArgumentParser, model: str = "a model; may be repeated") -> None:
    verb.add_argument("--model", action="append", metavar="NAME=PATH", help=model)
    _component_flag(verb)
    _lora_flag(verb)
    verb.add_argument(
        "--log-format",
        choices=("auto", "text", "json"),
        help="auto is text on a terminal, JSON otherwise (default: PREDICTORS_SERVER_LOG_FORMAT)",
    )


def _component_flag(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--component",
        action="append",
        default=[],
        metavar="[MODEL.]PART=PATH",
        help="the folder of a part (transformer, vae, ...) instead of that in the model's folder; "
        "may be repeated",
    )


def _lora_flag(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="[MODEL:]NAME=PATH",
        help="an adapter (LoRA), a .safetensors file or its folder, under a name that requests may "
        "use; may be repeated",
    )


def _profile_flags(verb: argparse.ArgumentParser) -> None:
    _model_flags(verb, model="the model; once")
    verb.add_argument(
        "--steps", type=int, default=8, help="engine steps to record, 1 to 200 (default: 8)"
    )
    verb.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help=f"prompt; may be repeated, for rows that share steps (default: {PROMPT!r})",
    )
    verb.add_argument("--image", type=Path, metavar="FILE", help="a picture beside each prompt")
    verb.add_argument(
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the V2 request, such as width=512; may be repeated",
    )
    verb.add_argument(
        "--out",
        type=Path,
        default=Path("out/profile.trace.json.gz"),
        metavar="FILE",
        help="file for the trace (default: out/profile.trace.json.gz)",
    )
    client_flags.json_flag(verb)


def _demo_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "prompt", nargs="*", metavar="PROMPT", help="picture to draw (default: two scenes)"
    )
    verb.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for pictures and log (default: out)"
    )
    _lora_flag(verb)
    client_flags.json_flag(verb)


def _quantize_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("source", type=Path, metavar="SOURCE", help="a folder in diffusers layout")
    verb.add_argument(
        "target", type=Path, metavar="TARGET", help="a folder that does not exist yet"
    )
    client_flags.json_flag(verb)


def _check_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="a checkpoint folder")
    verb.add_argument(
        "--memory", metavar="SIZE", help="judge for a card of this size, such as 24GiB"
    )
    _component_flag(verb)
    _lora_flag(verb)
    client_flags.json_flag(verb)


def _convert_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "source", type=Path, metavar="SOURCE", help="a .safetensors file, or a folder with one"
    )
    verb.add_argument(
        "target", type=Path, metavar="TARGET", help="a folder that does not exist yet"
    )
    verb.add_argument(
        "--base",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a FLUX folder in diffusers layout with all that the file lacks: configs, tokenizers, "
        "text encoders, VAE",
    )
    client_flags.json_flag(verb)


KEY_TERMS: Mapping[str, tuple[str, str]] = {
    "weight": ("NUMBER", "share of an engine beside other callers (default: 1)"),
    "models": ("NAME,NAME", "models that it may use (default: all)"),
    "max_jobs": ("COUNT", "jobs that may wait or run at a time (default: no limit)"),
    "requests_per_minute": ("NUMBER", "requests per minute (default: no limit)"),
    "engine_seconds_per_minute": ("NUMBER", "engine seconds per minute (default: no limit)"),
    "expires": ("DATE", "date, or time with zone, as 2027-01-31T00:00:00Z (default: never)"),
}
"""Flags of `keys add`: the fields of an entry."""


def _keys_flags(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", required=True, metavar="action")
    add = actions.add_parser("add", help="print a new key, and write its hash to the file")
    listing = actions.add_parser("list", help="print names and limits")
    remove = actions.add_parser("remove", help="remove the keys of a name")
    for action in (add, remove):
        action.add_argument("name", metavar="NAME", help="the caller, in logs and metrics")
    for action in (add, listing, remove):
        action.add_argument(
            "--file", type=Path, required=True, metavar="FILE", help="the keys file"
        )
        client_flags.json_flag(action)
    for name, (metavar, about) in KEY_TERMS.items():
        add.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=about)
    add.add_argument("--rotate", action="store_true", help="one more key of a name in the file")
    remove.add_argument("--old", action="store_true", help="all but the newest key of the name")


GRAMMAR: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "serve": ("serve checkpoints over REST and gRPC", _serve_flags),
    "activator": ("hold requests for a model that has no pod, and wake it", activator_flags),
    "warm": ("compile for checkpoints, keep the code for later starts, and exit", _warm_flags),
    "profile": ("record steps of one model for Perfetto, and exit", _profile_flags),
    "demo": ("draw and describe pictures with both embedded models", _demo_flags),
    "check": ("say whether and how a folder is served, without loading it", _check_flags),
    "quantize": ("copy a FLUX checkpoint into fp8", _quantize_flags),
    "keys": ("make, list and remove API keys", _keys_flags),
    "convert": ("make a folder of a FLUX checkpoint in one file", _convert_flags),
    "draw": ("draw a picture with a server's model, or a folder's", client_flags.draw_flags),
    "bench": ("measure a server under load, or compare two", client_flags.bench_flags),
    "smoke": ("try every protocol of a server once", client_flags.smoke_flags),
    "completion": ("print a shell's completion script", client_flags.completion_flags),
    "status": ("show the chart's InferenceServices", client_flags.status_flags),
    "ask": ("ask a question about a picture", client_flags.ask_flags),
}
