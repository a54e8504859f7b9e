"""How many answers at a high temperature are valid: every one that ended, and a prefix else.

    python -m benchmarks.structured_output [--answers 1000] [--results FILE]

Each of ten schemas is asked for by a tenth of the answers, sixteen at a time in one batch with
others. An answer that is cut by max_tokens must begin a valid one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from benchmarks.structured_output.schemas import SCHEMAS, formats
from predictors.chat.detokenize import Vocabulary
from predictors.chat.grammars.compiler import GrammarCompiler
from predictors.chat.predictor import ChatPredictor
from predictors.models.qwen2_5_vl.model import make_predictor
from predictors.protocol.call import Call
from predictors.protocol.openai.chat_body import read_chat_body
from predictors.settings import ComputeSettings, QwenVLSettings, Settings

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "shapes-qwen-vl"
RESULTS = Path(__file__).resolve().parents[1] / "results" / "structured_output.json"
TEMPERATURE = 1.5
MAX_TOKENS = 384
AT_ONCE = 16  # choices of one request
SETTINGS = Settings(
    compute=ComputeSettings(device="cpu"),
    qwen_vl=QwenVLSettings(slots=AT_ONCE, max_context=512),
)


@dataclass
class Tally:
    """Outcomes under one schema."""

    valid: int = 0
    prefixes: int = 0
    wrong: int = 0
    tokens: int = 0
    first_wrong: str = ""

    @property
    def answers(self) -> int:
        return self.valid + self.prefixes + self.wrong


class AnswerJudge:
    """Sorts answers into valid ones, prefixes and wrong ones."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
        size = tokenizer.get_vocab_size()
        self._vocabulary = Vocabulary(tokenizer, size)
        self._compiler = GrammarCompiler(tokenizer, size, [tokenizer.token_to_id("<|im_end|>")])
        self._bytes = {
            raw[0]: token
            for token in range(size)
            if len(raw := self._vocabulary.bytes_of(token)) == 1
        }

    def judge(self, name: str, choice: dict[str, Any], tally: Tally) -> None:
        text, reason = choice["message"]["content"], choice["finish_reason"]
        if reason == "stop" and _is_valid(text, SCHEMAS[name]):
            tally.valid += 1
        elif reason == "length" and self._begins(name, text):
            tally.prefixes += 1
        else:
            tally.wrong += 1
            tally.first_wrong = tally.first_wrong or f"{reason}: {text[:200]}"

    def _begins(self, name: str, text: str) -> bool:
        matcher = self._compiler.compile(formats()[name]).matcher()
        return all(matcher.accept(self._bytes[byte]) for byte in text.encode())


def _is_valid(text: str, schema: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


async def ask_all(predictor: ChatPredictor, answers: int) -> dict[str, Tally]:
    """`answers` under all schemas together, as even as can be."""
    judge, tallies = AnswerJudge(), {name: Tally() for name in SCHEMAS}
    left = Counter({name: answers // len(SCHEMAS) for name in SCHEMAS})
    seed = 0
    while left.total():
        for name in [name for name in SCHEMAS if left[name]]:
            count = min(AT_ONCE, left[name])
            left[name] -= count
            given = await predictor.chat(_body(name, count, seed), _call(seed))
            seed += count
            for choice in given["choices"]:
                judge.judge(name, choice, tallies[name])
            tallies[name].tokens += given["usage"]["completion_tokens"]
    return tallies


def _body(name: str, count: int, seed: int) -> Any:
    schema = {"name": name, "strict": True, "schema": SCHEMAS[name]}
    return read_chat_body(
        {
            "model": "captioner",
            "messages": [{"role": "user", "content": f"Describe the {name} as JSON."}],
            "response_format": {"type": "json_schema", "json_schema": schema},
            "temperature": TEMPERATURE,
            "max_tokens": MAX_TOKENS,
            "n": count,
            "seed": seed,
        }
    )


def _call(seed: int) -> Call:
    return Call({}, protocol="openai", request_id=f"answers-{seed}")


def measure(answers: int) -> dict[str, Any]:
    """Counts by schema, and the share of valid answers."""
    predictor = make_predictor("captioner", CHECKPOINT, SETTINGS)
    assert predictor.load()
    started = time.monotonic()
    try:
        tallies = asyncio.run(ask_all(predictor, answers))
    finally:
        predictor.stop()
    total = sum(tally.answers for tally in tallies.values())
    return {
        "answers": total,
        "temperature": TEMPERATURE,
        "max_tokens": MAX_TOKENS,
        "valid": sum(tally.valid for tally in tallies.values()),
        "prefixes": sum(tally.prefixes for tally in tallies.values()),
        "wrong": sum(tally.wrong for tally in tallies.values()),
        "seconds": round(time.monotonic() - started, 1),
        "by_schema": {
            name: {key: value for key, value in vars(tally).items() if value != ""}
            for name, tally in tallies.items()
        },
    }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--answers", type=int, default=1000)
    options.add_argument("--results", type=Path, default=RESULTS)
    chosen = options.parse_args()
    found = measure(chosen.answers)
    chosen.results.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({key: found[key] for key in ("answers", "valid", "prefixes", "wrong")}))
    return 0 if not found["wrong"] and found["valid"] >= 0.99 * found["answers"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
