"""How often an edit of the embedded checkpoint replaces a shape as asked, by the pixel checker.

    python -m benchmarks.flux.inpainting --count 200 --strength 0.9 --steps 14

The edits go through the predictor as those of `POST /v1/images/edits` do.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from checkpoints.training.edits import SEED as CASES_SEED
from checkpoints.training.edits import Edit, edits
from checkpoints.training.evaluate import interval
from predictors.diffusion.predictor import DiffusionPredictor
from predictors.models.flux.model import FluxModel
from predictors.protocol.call import Call
from predictors.protocol.openai.edits_body import EditsBody, SentPicture
from predictors.settings import FluxSettings, Settings

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "shapes-flux"
STRENGTH, STEPS = 0.9, 14
"""Of the score in the model card."""
AT_ONCE = 8
SEED = 5000


def png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


async def edited(
    predictor: DiffusionPredictor, cases: Sequence[Edit], *, strength: float, steps: int
) -> list[Image.Image]:
    """The cases' pictures, some at once, each with a seed of its own."""
    room = asyncio.Semaphore(AT_ONCE)

    async def draw(number: int, case: Edit) -> Image.Image:
        body = EditsBody(
            predictor.name,
            case.prompt,
            seed=SEED + number,
            num_inference_steps=steps,
            strength=strength,
            images=(SentPicture(png(case.picture), "image"),),
            mask=SentPicture(png(case.mask), "mask"),
        )
        async with room:
            answer = await predictor.edits(body, Call({}, protocol="openai"))
        file = base64.b64decode(answer["data"][0]["b64_json"])
        return Image.open(BytesIO(file)).convert("RGB")

    return list(await asyncio.gather(*(draw(*each) for each in enumerate(cases))))


def make_predictor() -> DiffusionPredictor:
    """The embedded checkpoint, ready."""
    settings = Settings(flux=FluxSettings(slots=AT_ONCE))
    predictor = DiffusionPredictor("shapes", FluxModel(CHECKPOINT), settings)
    predictor.load()
    return predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=CASES_SEED, help="of the cases")
    parser.add_argument("--strength", type=float, nargs="+", default=[STRENGTH])
    parser.add_argument("--steps", type=int, nargs="+", default=[STEPS])
    args = parser.parse_args()
    cases, predictor = edits(args.count, args.seed), make_predictor()
    for steps in args.steps:
        for strength in args.strength:
            started = time.monotonic()
            pictures = asyncio.run(edited(predictor, cases, strength=strength, steps=steps))
            seconds = time.monotonic() - started
            right = sum(case.is_right(x) for case, x in zip(cases, pictures, strict=True))
            low, high = interval(right, len(cases))
            line = {"steps": steps, "strength": strength, "right": right, "of": len(cases)}
            line |= {"interval_95": [round(low, 3), round(high, 3)], "seconds": round(seconds, 1)}
            print(json.dumps(line), flush=True)
    predictor.stop()


if __name__ == "__main__":
    main()
