"""Trains both checkpoints and writes them in place (`make checkpoints`), or evaluates them.

Each part can be trained alone (--only) and can continue from the weights in the work folder
(--resume), so that a long training can be spread over several runs. Seeds are fixed, but the order
of additions on a GPU is not, so the weights of two trainings are similar and not identical.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import random
import sys
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import (
    CLIPTextModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5EncoderModel,
)

from checkpoints.training import (
    evaluate,
    export,
    parts,
    train_flux,
    train_guidance,
    train_places,
    train_qwen_vl,
    train_words,
)
from checkpoints.training.loop import Plan
from checkpoints.training.train_vae import train_vae

PARTS = ("vae", "flux", "guidance", "order", "qwen-vl", "export")
STEPS = {"vae": 8_000, "flux": 40_000, "guidance": 10_000, "order": 4_000,
         "qwen-vl": 25_000}  # fmt: skip
RATES = {"vae": 1e-3, "flux": 1e-3, "guidance": 3e-4, "order": 6e-4, "qwen-vl": 1e-3}
WORDS = Plan(steps=4_000, rate=2e-3, warmup=50, average=0.98)


def _plan(part: str, args: argparse.Namespace) -> Plan:
    average = 0.999 if args.seconds is None or args.seconds > 60 else 0.99
    return Plan(
        steps=args.steps or STEPS[part],
        seconds=args.seconds or math.inf,
        rate=args.rate or RATES[part],
        warmup=min(500, (args.steps or STEPS[part]) // 10 + 1),
        average=average,
    )


def _vae(work: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained((work / "vae").resolve())


def _train_vae(args: argparse.Namespace) -> None:
    vae = _vae(args.work) if args.resume else parts.build_vae()
    train_vae(vae, args.device, _plan("vae", args), args.pool)
    vae.save_pretrained(args.work / "vae")


def _painter(work: Path) -> train_flux.Painter:
    return train_flux.Painter(
        FluxTransformer2DModel.from_pretrained(work / "transformer"),
        T5EncoderModel.from_pretrained(work / "text_encoder_2", dtype=torch.float32),
        CLIPTextModel.from_pretrained(work / "text_encoder", dtype=torch.float32),
    )


def _train_painter(part: str, args: argparse.Namespace) -> None:
    # The pool first: its worker processes must fork before this one holds a GPU.
    pool = train_flux.make_pool(_vae(args.work), args.pool, args.device, args.workers)
    train = train_flux.train_painter if part == "flux" else train_guidance.train_guidance
    painter = train_flux.build_painter(args.device)
    if args.resume or part == "guidance":
        painter = _painter(args.work)
        for module in (painter.transformer, painter.t5, painter.clip):
            module.to(args.device)

    def save() -> None:
        painter.transformer.save_pretrained(args.work / "transformer")
        painter.t5.save_pretrained(args.work / "text_encoder_2")
        painter.clip.save_pretrained(args.work / "text_encoder")

    train(painter, pool, _plan(part, args), save)
    save()


def _train_order(args: argparse.Namespace) -> None:
    """Train T5 on text alone, then the transformer on the new states of T5."""
    old, painter = _painter(args.work), _painter(args.work)
    painter.t5.to(args.device)
    train_words.train_words(painter.t5, train_words.make_pool(40_000, args.device), WORDS)
    scenes = train_places.choose_scenes(min(args.pool, 40_000))
    latents = train_places.draw_latents(_vae(args.work), scenes, args.device)
    for module in (painter.transformer, painter.clip, old.transformer, old.t5, old.clip):
        module.to(args.device)
    fresh = copy.deepcopy(painter.t5)  # because training rounds the original
    pool = train_places.make_pool(latents, scenes)
    train_places.train_places(painter, old, pool, _plan("order", args))
    painter.transformer.save_pretrained(args.work / "transformer")
    fresh.save_pretrained(args.work / "text_encoder_2")


def _captioner(work: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(work / "qwen-vl", dtype=torch.float32)


def _train_qwen_vl(args: argparse.Namespace) -> None:
    pool = train_qwen_vl.make_pool(_vae(args.work), args.pool, args.device, args.workers)
    model = train_qwen_vl.build_captioner(args.device)
    if args.resume:
        model = _captioner(args.work).to(args.device)

    def save() -> None:
        model.save_pretrained(args.work / "qwen-vl")

    train_qwen_vl.train_captioner(model, pool, _plan("qwen-vl", args), save)
    save()


def _export(args: argparse.Namespace) -> None:
    painter = _painter(args.work)
    tokenizers = export.load_tokenizers()
    export.export_flux(
        _vae(args.work),
        painter.transformer,
        painter.clip,
        painter.t5,
        tokenizers,
        args.out / export.FLUX_FOLDER.name,
    )
    tokenizer = Qwen2Tokenizer.from_pretrained(export.QWEN_FOLDER)
    export.export_qwen_vl(_captioner(args.work), tokenizer, args.out / export.QWEN_FOLDER.name)


def main() -> None:
    """Train the selected parts in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, default=Path(".work/weights"))
    parser.add_argument("--out", type=Path, default=export.ROOT)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--pool", type=int, default=200_000, help="pictures to train on")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward failed on Hopper with torch 2.11
    train = {
        "vae": _train_vae,
        "flux": partial(_train_painter, "flux"),
        "guidance": partial(_train_painter, "guidance"),
        "order": _train_order,
        "qwen-vl": _train_qwen_vl,
        "export": _export,
    }
    for part in args.only or PARTS:
        train[part](args)


if __name__ == "__main__":
    if sys.argv[1:2] == ["evaluate"]:
        del sys.argv[1]
        evaluate.main()
    else:
        main()
