"""Microseconds that the masks of a step take on the host: 21 answers of the Qwen benchmark's
schema, a vocabulary of 151,936, nothing else of a step.

    python -m benchmarks.structured_output.masks [--rows 21] [--schemas 1] [--busy]

Each row follows a path of random tokens of its own through the schema; all rows take a token per
step. `--busy` has another thread run Python meanwhile, as the event loop of a busy server does.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.qwen_vl.cases import LIST_FORMAT
from benchmarks.qwen_vl.random_weights import write_configs
from benchmarks.qwen_vl.sizes import THREE
from predictors.chat.constraints import Constraint, fill_masks
from predictors.chat.grammars.compiler import GrammarCompiler
from predictors.operators.serve import SWITCH_INTERVAL_S
from predictors.protocol.answer_format import AnswerFormat, schema_format

VOCAB = THREE.full["text_config"]["vocab_size"]
ENDS = (800, 802)
STEPS = 128


def list_formats(count: int) -> list[AnswerFormat]:
    """Of the benchmark's schema; further ones differ in a bound."""
    schemas = [json.loads(json.dumps(LIST_FORMAT["json_schema"]["schema"])) for _ in range(count)]  # type: ignore[index]
    for number, schema in enumerate(schemas):
        schema["maxItems"] += number
    return [schema_format("response_format", schema) for schema in schemas]


def random_token(mask: NDArray[np.int32], chance: np.random.Generator) -> int:
    """One that the mask allows."""
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return int(chance.choice(np.flatnonzero(bits)))


def step_times(constraints: list[Constraint]) -> dict[str, list[float]]:
    """Microseconds per step of all masks, on the clock and of all threads' CPU time, and of taking
    all tokens."""
    size = (len(constraints), (VOCAB + 31) // 32)
    chances = [np.random.default_rng(row) for row in range(len(constraints))]
    found: dict[str, list[float]] = {"masks_us": [], "masks_cpu_us": [], "take_us": []}
    for step in range(STEPS):
        words = np.zeros(size, np.int32)  # matchers keep theirs
        used, started = time.process_time(), time.perf_counter()
        fill_masks([(constraint, step) for constraint in constraints], words)
        found["masks_us"].append(1e6 * (time.perf_counter() - started))
        found["masks_cpu_us"].append(1e6 * (time.process_time() - used))
        tokens = [random_token(mask, chance) for mask, chance in zip(words, chances, strict=True)]
        chosen = time.perf_counter()
        for constraint, token in zip(constraints, tokens, strict=True):
            assert constraint.take(step, token) is None
        found["take_us"].append(1e6 * (time.perf_counter() - chosen))
    return found


class BusyLoop:
    """A thread that writes tokens to sockets, as an event loop with many streams."""

    def __init__(self) -> None:
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> BusyLoop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        here, there = socket.socketpair()
        with here, there:
            while not self._is_over.is_set():
                raw = json.dumps({"choices": [{"delta": {"content": "a"}}] * 4}).encode()
                here.sendall(raw)
                there.recv(len(raw))


def measure(rows: int, schemas: int, *, is_busy: bool) -> dict[str, Any]:
    """Of one run, with new grammars."""
    with tempfile.TemporaryDirectory() as folder:
        write_configs(Path(folder), THREE.full)
        tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    compiler = GrammarCompiler(tokenizer, VOCAB, ENDS)
    formats = list_formats(schemas)
    grammars = [compiler.compile(formats[row % schemas]) for row in range(rows)]
    constraints = [Constraint(grammar.matcher(), ENDS) for grammar in grammars]
    if is_busy:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        with BusyLoop():
            found = step_times(constraints)
    else:
        found = step_times(constraints)
    times = {name: _summary(each) for name, each in found.items()}
    return {"rows": rows, "schemas": schemas, "is_busy": is_busy, **times}


def _summary(times: list[float]) -> dict[str, float]:
    p10, median, p90, most = np.percentile(times, (10, 50, 90, 100))
    found = {"mean": np.mean(times), "p10": p10, "median": median, "p90": p90, "max": most}
    return {name: round(float(value), 1) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=21)
    parser.add_argument("--schemas", type=int, default=1)
    parser.add_argument("--busy", action="store_true")
    asked = parser.parse_args()
    print(json.dumps(measure(asked.rows, asked.schemas, is_busy=asked.busy)))


if __name__ == "__main__":
    main()
