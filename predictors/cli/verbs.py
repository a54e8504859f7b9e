"""The verbs that are clients of a server or a cluster. Their docstrings are the command line's
help; each imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import sys

from predictors.cli.named_values import named_paths


def demo(arguments: argparse.Namespace) -> int:
    """Serve both embedded models, draw PROMPTs over V2, caption them over OpenAI chat, stop."""
    from predictors.cli import demo as client  # imports httpx: serving does not need it

    loras = named_paths(arguments.lora, "--lora")
    prompts = arguments.prompt or client.PROMPTS
    return client.run_demo(prompts, arguments.out, loras, as_json=arguments.json)


def draw(arguments: argparse.Namespace) -> int:
    """Draw PROMPT with the model of a server, or of a folder, and write the picture to a file."""
    from predictors.cli.drawing import run_draw
    from predictors.cli.endpoint import RemoteServer
    from predictors.cli.sources import OwnSource, ServerSource

    if arguments.own is not None:
        with arguments.open_model(arguments.own) as model:
            return run_draw(arguments, OwnSource(model))
    with RemoteServer.of(arguments) as endpoint:
        return run_draw(arguments, ServerSource(endpoint))


def ask(arguments: argparse.Namespace) -> int:
    """Ask a server, or the model of a folder, QUESTION about PICTURE, and print the answer as its
    words come."""
    from predictors.cli.asking import run_ask
    from predictors.cli.endpoint import RemoteServer
    from predictors.cli.sources import OwnSource, ServerSource

    if arguments.own is not None:
        with arguments.open_model(arguments.own) as model:
            return run_ask(arguments, OwnSource(model))
    with RemoteServer.of(arguments) as endpoint:
        return run_ask(arguments, ServerSource(endpoint))


def bench(arguments: argparse.Namespace) -> int:
    """Measure an OpenAI or V2 server under load: rates, goodput, errors by status, and the 50th,
    95th and 99th percentile of the time to the first token, per token, between tokens, and of the
    whole answer. With --compare two servers take turns, and their ratios are printed."""
    from predictors.cli.bench.run import run_bench

    return run_bench(arguments)


def smoke(arguments: argparse.Namespace) -> int:
    """Ask a server for its health and its models, and each model once over every protocol. The
    embedded checkpoints must give known answers. The exit code is 0 if nothing failed."""
    from predictors.cli.smoke import run_smoke

    return run_smoke(arguments)


def completion(arguments: argparse.Namespace) -> int:
    """Print a script that completes this command line, to be read by the shell's start file."""
    from predictors.cli.arguments import make_parser
    from predictors.cli.completion import completion_script

    sys.stdout.write(completion_script(make_parser(arguments.verbs), arguments.shell))
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Show the chart's InferenceServices: ready, phase, progress of the warm-up, restarts, and the
    queue where the API server's proxy reaches it. The exit code is 0 if all are ready."""
    from predictors.cli.status import run_status

    return run_status(arguments)


CLIENTS = (demo, draw, ask, bench, smoke, status, completion)
"""In the order of `GRAMMAR`, which does not matter."""
