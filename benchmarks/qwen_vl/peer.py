"""The peer: transformers' `generate` on the same checkpoint, with its growing cache and with its
static one, whose decode step it compiles on a GPU.

Times run from JPEG to tokens: decoding and preparing the picture on the CPU count to the first
token, as they do for a server's caller. Greedy, neutral penalties, attention by SDPA, bfloat16.
"""

from __future__ import annotations

import gc
import io
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
)

from benchmarks.common.clock import Clock
from benchmarks.common.run import PartialResults
from benchmarks.common.stats import Spread
from benchmarks.qwen_vl.cases import Case, Conversations, text
from benchmarks.qwen_vl.options import QwenVLOptions

DYNAMIC, STATIC = "transformers dynamic", "transformers static"
SINGLE = (("1024x1024", 128), ("448x448", 64), ("text", 64))
TOY_SINGLE = (("64x64", 8), ("text", 8))
BATCHES = (8, 32)
REPEATS = 3
NO_MODEL = ""
WORDS = text(1)
"""The same each time: a static cache of another length is compiled again."""


class Stamps(StoppingCriteria):
    """Notes the time of each token; never stops generation."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **rest: Any) -> Any:
        self._clock.settle()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True, slots=True)
class Timed:
    """Milliseconds of one run."""

    prepare: float
    first: float
    """Preparing included."""
    gaps: list[float] = field(repr=False)
    seconds: float


class Peer:
    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.clock = Clock(device)
        self._processor: Any = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            folder, local_files_only=True
        )
        self._processor.tokenizer.padding_side = "left"
        kind: Any = Qwen2_5_VLForConditionalGeneration
        self.model = kind.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
        self.model.to(device).eval()

    def inputs(self, files: list[list[bytes]], texts: list[str]) -> dict[str, Tensor]:
        """JPEGs and texts, a list of files and a text per row, as the model takes them."""
        pictures = [[Image.open(io.BytesIO(f)).convert("RGB") for f in row] for row in files]
        turns = [_turn(len(row), words) for row, words in zip(files, texts, strict=True)]
        rendered = [
            self._processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
            for turn in turns
        ]
        flat = [picture for row in pictures for picture in row]
        made = self._processor(
            text=rendered, images=flat or None, padding=True, return_tensors="pt"
        )
        return {name: value.to(self.clock.device) for name, value in made.items()}

    def run(self, case: Case, first: int, *, is_static: bool) -> Timed:
        """One batch of `case.clients` rows, one answer of `case.tokens` each."""
        talk = Conversations(case, NO_MODEL)
        files = [talk.files(first + i) for i in range(case.clients)]
        texts = [WORDS] * case.clients
        self.clock.settle()
        started = time.perf_counter()
        inputs = self.inputs(files, texts)
        self.clock.settle()
        prepared = time.perf_counter()
        stamps = Stamps(self.clock)
        self.generate(inputs, case.tokens, stamps, is_static=is_static)
        times = stamps.times
        return Timed(
            prepare=1e3 * (prepared - started),
            first=1e3 * (times[0] - started),
            gaps=[1e3 * (b - a) for a, b in itertools.pairwise(times)],
            seconds=time.perf_counter() - started,
        )

    def generate(
        self, inputs: dict[str, Tensor], tokens: int, stamps: Stamps, *, is_static: bool
    ) -> Tensor:
        """Exactly `tokens` greedy tokens per row."""
        options: dict[str, Any] = {"cache_implementation": "static"} if is_static else {}
        with torch.inference_mode():
            made: Tensor = self.model.generate(
                **inputs,
                **options,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                temperature=None,
                repetition_penalty=1.0,
                stopping_criteria=StoppingCriteriaList([stamps]),
            )
        return made


def _turn(pictures: int, words: str) -> dict[str, Any]:
    parts = [{"type": "image"} for _ in range(pictures)]
    return {"role": "user", "content": [*parts, {"type": "text", "text": words}]}


def peer(options: QwenVLOptions, results: PartialResults) -> None:
    """One row at a time with both caches, then batches."""
    device = torch.device(options.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    started = time.perf_counter()
    one = Peer(Path(options.folder), device, dtype)
    results.add("load_s", time.perf_counter() - started)
    for name, is_static in ((DYNAMIC, False), (STATIC, True)):
        for kind, tokens in TOY_SINGLE if options.is_toy else SINGLE:
            case = Case(1, kind, REPEATS, tokens)
            _attempt(one, case, name, results, is_static=is_static)
    if not options.is_toy:
        for batch in BATCHES:
            case = Case(batch, "1024x1024", 1, 128)
            _attempt(one, case, DYNAMIC, results, is_static=False)


def _attempt(one: Peer, case: Case, name: str, results: PartialResults, *, is_static: bool) -> None:
    try:
        found = measure(one, case, is_static=is_static)
    except Exception as error:  # noqa: BLE001 - the next case may still work
        found = {"error": repr(error)[:500]}
    results.add(f"{name}, {case}", found)
    gc.collect()
    if one.clock.is_cuda:
        torch.cuda.empty_cache()


def measure(one: Peer, case: Case, *, is_static: bool) -> dict[str, Any]:
    """The case's repeats after one that warms or compiles."""
    one.clock.reset_peak()
    warm = one.run(case, 900_000, is_static=is_static) if case.clients == 1 else None
    runs = [
        one.run(case, 1000 + i * case.clients, is_static=is_static) for i in range(_turns(case))
    ]
    gaps = [gap for run in runs for gap in run.gaps]
    return {
        "warm_s": None if warm is None else warm.seconds,
        "prepare_ms": Spread.of([run.prepare for run in runs]).median,
        "ttft_ms": Spread.of([run.first for run in runs]).median,
        "tpot_ms": Spread.of(gaps).median,
        "requests_per_s": case.clients / Spread.of([run.seconds for run in runs]).median,
        "peak_gib": (one.clock.peak_bytes() or 0) / 2**30,
    }


def _turns(case: Case) -> int:
    return case.requests if case.clients == 1 else 1
