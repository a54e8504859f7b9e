"""Scores the adapters of shapes-flux on held-out prompts: none, each alone and both together.

diffusers draws with the adapters fused into its weights, and the rule-based checker reads.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import FluxPipeline
from PIL import Image

from checkpoints.training import evaluate, low_rank
from checkpoints.training.export import FLUX_FOLDER
from checkpoints.training.scenes import Scene, caption
from checkpoints.training.styles import PLAIN, STYLES, styled_scenes
from checkpoints.training.train_style import FILE, LORAS_FOLDER

RESULTS = evaluate.RESULTS.with_name("shapes-loras.json")
CASES = {"base": (), **{name: (name,) for name in STYLES}, "both": tuple(STYLES)}
BATCH = 20


def load_adapter(name: str, folder: Path = LORAS_FOLDER) -> low_rank.Changes:
    """The matrices of one adapter."""
    return low_rank.load(folder / name / FILE, "transformer.")


def draw(names: tuple[str, ...], scenes: list[Scene], steps: int, length: int) -> list[Image.Image]:
    """A picture of each scene's caption with these adapters at scale 1, from fixed seeds."""
    pipeline = FluxPipeline.from_pretrained(FLUX_FOLDER, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    low_rank.fuse(pipeline.transformer, [(load_adapter(name), 1.0) for name in names])
    images: list[Image.Image] = []
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        seeds = range(2000 + start, 2000 + start + len(part))
        images += pipeline(
            [caption(scene) for scene in part],
            height=128,
            width=128,
            num_inference_steps=steps,
            max_sequence_length=length,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        ).images
    return images


def main() -> None:
    """Print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompt-length", type=int, default=64)
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scenes = styled_scenes(list(STYLES.values()), args.count)
    rows = []
    for case in args.only or CASES:
        style = PLAIN
        for name in CASES[case]:
            style = style.mixed(STYLES[name])
        images = draw(CASES[case], scenes, args.steps, args.prompt_length)
        right = [style.shown(image, scene) for image, scene in zip(images, scenes, strict=True)]
        rows.append(evaluate.row(f"{case}: drawn right", right))
        evaluate.print_table(rows[-1:])
        for name in sorted(set(STYLES) - set(CASES[case])):
            other = style.mixed(STYLES[name])
            wrong = [other.shown(i, scene) for i, scene in zip(images, scenes, strict=True)]
            rows.append(evaluate.row(f"{case}: read as {name}", wrong))
            evaluate.print_table(rows[-1:])
    report = {
        "engine": "diffusers, adapters fused",
        "device": "cpu, one thread",
        "precision": "weights and adapters bf16, computed in fp32",
        "steps": args.steps,
        "prompt_length": args.prompt_length,
        "rows": rows,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
