"""Chat models side by side on one GPU: each behind this server, with random weights at full size,
with the same streaming clients. One table of first tokens and times per token.

`python -m benchmarks.qwen_vl.models` measures all models within `--budget` seconds; `--models`
takes some, `--keep` adds to the file of an earlier call, `--toy` runs the same code at a few
layers' size on any device. Checkpoints are made once, on a memory disk where there is one (7.5,
16.6, 4.3 and 8.9 GB); nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.common import paths
from benchmarks.common.run import BenchmarkRun, rounded, write_json
from benchmarks.common.tables import markdown
from benchmarks.qwen_vl import random_weights
from benchmarks.qwen_vl.__main__ import SLOTS, TOY_SLOTS, run_parts
from benchmarks.qwen_vl.options import QwenVLOptions
from benchmarks.qwen_vl.sizes import MEMORY, SEVEN, THREE, Config
from benchmarks.qwen_vl.tables import cases

RESULTS = paths.RESULTS / "qwen_vl_models.json"
CASES = "1 x text,1 x 448x448,1 x 1024x1024,64 x text,64 x 448x448"
TOY_CASES = "1 x text,4 x 64x64"
HEAD = (
    "model", "clients x prompt", "tokens of a prompt", "first token ms, p50", "p99",
    "ms per token, mean", "p99", "tokens/s",
)  # fmt: skip


def qwen3_vl(text: Config, vision: Config = MappingProxyType({})) -> Config:
    """Qwen3-VL as the hub has it; `text` are the decoder's sizes, `vision` what differs in the
    vision tower of 2B and 4B."""
    rope = {
        "rope_type": "default", "rope_theta": 5000000.0, "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    }  # fmt: skip
    return {
        "model_type": "qwen3_vl",
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "tie_word_embeddings": True,
        "text_config": {
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            "max_position_embeddings": 262144, "rope_parameters": rope, **text,
        },
        "vision_config": {
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
            "out_hidden_size": text["hidden_size"], "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17], **vision,
        },
    }  # fmt: skip


MODELS: Mapping[str, Config] = {
    THREE.title: THREE.full,
    SEVEN.title: SEVEN.full,
    "Qwen3-VL-2B": qwen3_vl(
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
        }
    ),
    "Qwen3-VL-4B": qwen3_vl(
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
        }
    ),
}
TOYS: Mapping[str, Config] = {
    THREE.title: THREE.toy,
    SEVEN.title: SEVEN.toy,
    "Qwen3-VL-2B": qwen3_vl(
        {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
            "num_attention_heads": 8, "vocab_size": 832,
        },
        {
            "depth": 4, "hidden_size": 64, "intermediate_size": 96,
            "deepstack_visual_indexes": [0, 1],
        },
    ),
}  # fmt: skip
PICTURES = {
    "qwen3_vl": {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
}
"""preprocessor_config.json by model type, where it is not the embedded checkpoint's."""


def make(folder: Path, changes: Config, device: torch.device) -> dict[str, float]:
    """The random checkpoint in `folder`, unless it is there already."""
    pictures = PICTURES.get(str(changes.get("model_type")))
    files = {} if pictures is None else {"preprocessor_config.json": pictures}
    return random_weights.make(folder, changes, device, files)


def measure(name: str, changes: Config, options: QwenVLOptions, budget_s: float) -> dict[str, Any]:
    started = time.monotonic()
    device = torch.device(options.device)
    found: dict[str, Any] = {"checkpoint": make(Path(options.folder), changes, device)}
    if device.type == "cuda":
        torch.cuda.empty_cache()
    left_s = budget_s - (time.monotonic() - started)
    run = BenchmarkRun(paths.SCRATCH / f"models-{name}.json", left_s)
    run_parts(run, options, ["http"])
    return found | {
        key: run.found[key] for key in ("http", "failed", "left_out") if run.found.get(key)
    }


def table(found: Mapping[str, Any]) -> str:
    """All models, case by case, as Markdown."""
    rows = {name: cases(model, "http") for name, model in found["models"].items()}
    asked = dict.fromkeys(case for by_case in rows.values() for case in by_case)
    cells = [
        (name, case, *_figures(by_case[case]))
        for case in asked
        for name, by_case in rows.items()
        if case in by_case
    ]
    return markdown([HEAD, *cells])


def _figures(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "requests_per_s" not in row:
        return ("failed", *["-"] * 5)
    first = (f"{row[key]:.1f}" for key in ("ttft_ms_p50", "ttft_ms_p99"))
    each = (f"{row[key]:.2f}" for key in ("tpot_ms_mean", "tpot_ms_p99"))
    return (f"{row['prompt_tokens_mean']:.0f}", *first, *each, f"{row['tokens_per_s']:.0f}")


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.qwen_vl.models", description=__doc__
    )
    add = parser.add_argument
    add("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)}")
    add("--cases", default="", help=f"of the clients', by default {CASES}")
    add("--toy", action="store_true", help="a few layers, on any device")
    add("--budget", type=float, default=560.0, help="seconds for everything")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of our server")
    add("--device", default="", help="cuda:0, cpu, ...")
    add("--out", type=Path, help="the JSON file")
    add("--keep", action="store_true", help="keep the file's other models")
    asked = parser.parse_args(arguments)
    known = TOYS if asked.toy else MODELS
    asked.names = [name.strip() for name in asked.models.split(",") if name.strip() in known]
    if not asked.names:
        parser.error(f"--models takes {', '.join(known)}")
    return asked


def main(arguments: Sequence[str]) -> int:
    """The status is 1 if a model failed."""
    asked, began = read_options(arguments), time.monotonic()
    out = asked.out or (paths.SCRATCH / RESULTS.name if asked.toy else RESULTS)
    found: dict[str, Any] = {"models": {}}
    if asked.keep and out.exists():
        found = json.loads(out.read_text())
    shelf = MEMORY if MEMORY.is_dir() and not asked.toy else paths.SCRATCH
    for name in asked.names:
        options = QwenVLOptions(
            folder=str(shelf / f"{'toy-' if asked.toy else ''}{name}"),
            device=asked.device or ("cpu" if asked.toy else "cuda:0"),
            is_toy=asked.toy,
            slots=TOY_SLOTS if asked.toy else SLOTS,
            settings=dict(each.split("=", 1) for each in asked.set),
            cases=asked.cases or (TOY_CASES if asked.toy else CASES),
        )
        print(f"== {name}", flush=True)
        left_s = asked.budget - (time.monotonic() - began)
        changes = (TOYS if asked.toy else MODELS)[name]
        found["models"][name] = measure(name, changes, options, left_s)
        write_json(out, rounded(found))
    print(f"\n{table(found)}\n\nwritten to {out}")
    return int(any(model.get("failed") for model in found["models"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
