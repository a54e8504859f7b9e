"""The predictor with its engine thread, without a server."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
import pytest_asyncio
import torch

from predictors import metrics
from predictors.diffusion.inputs import DiffusionWork
from predictors.diffusion.predictor import DiffusionPredictor
from predictors.diffusion.request import ImageRequest, ImageResult
from predictors.errors import InvalidRequest, NotReady, StepFailed
from predictors.models.flux.model import FluxModel
from predictors.protocol.call import Call
from predictors.protocol.openai.images_body import read_images_body
from predictors.protocol.v2.rest import check_outputs
from predictors.protocol.v2.values import Tensor, V2Request, V2Response
from predictors.settings import ComputeSettings, FluxSettings, Settings
from tests.diffusion.driver import CHECKPOINT, DiffusionJob
from tests.fakes import PATIENCE_S

SETTINGS = Settings(
    compute=ComputeSettings(device="cpu"),
    flux=FluxSettings(sizes="64x64", default_size="64x64", max_sequence_length=16, slots=8),
)
POISON = "poison"


class Poisonable(DiffusionPredictor):
    """Tokens outside the vocabulary for one prompt, so that the real text encoder raises."""

    def prepare(self, request: ImageRequest) -> DiffusionWork:
        work = super().prepare(request)
        if request.prompt != POISON:
            return work
        (prompt,) = work.prompts
        clip_ids, t5_ids = prompt.ids
        bad = replace(prompt, ids=(clip_ids, torch.full_like(t5_ids, 10**6)))
        return replace(work, prompts=(bad,))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def predictor() -> AsyncIterator[DiffusionPredictor]:
    made = Poisonable("flux-door", FluxModel(CHECKPOINT), SETTINGS)
    with pytest.raises(NotReady):
        await made.infer(v2("too early"), Call({}, protocol="v2_rest"))
    await asyncio.to_thread(made.load)
    yield made
    await asyncio.to_thread(made.stop)


def v2(*prompts: str, **parameters: int | float | str) -> V2Request:
    rows = Tensor("prompt", "BYTES", (len(prompts),), [prompt.encode() for prompt in prompts])
    return V2Request("flux-door", "", (rows,), {"num_inference_steps": 2, "seed": 1} | parameters)


def files(response: V2Response) -> list[object]:
    return list(response.outputs[0].data)


def call() -> Call:
    return Call({}, protocol="v2_rest")


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_v2_and_openai_draw_the_same_bytes_alone_and_beside_others(
    predictor: DiffusionPredictor,
) -> None:
    alone = files(await predictor.infer(v2("a red circle", seed=3), call()))[0]
    others = await asyncio.gather(
        predictor.infer(v2("a", "b", "a red circle"), call()),  # its seed is 1 + 2
        predictor.infer(v2("c", "d", num_inference_steps=5), call()),
        predictor.infer(v2("a red circle", width=96), call()),
    )
    assert files(others[0])[2] == alone
    body = read_images_body(
        {"model": "x", "prompt": "a red circle", "seed": 2, "n": 2, "num_inference_steps": 2}
    )
    reply = await predictor.images(body, call())
    assert base64.b64decode(reply["data"][1]["b64_json"]) == alone
    assert reply["data"][1]["seed"] == 3
    assert reply["usage"]["input_tokens"] > 0


async def test_a_row_that_raises_in_the_engine_fails_alone(predictor: DiffusionPredictor) -> None:
    prompts = [f"shape {i}" for i in range(7)]
    alone = [files(await predictor.infer(v2(p, seed=i), call()))[0] for i, p in enumerate(prompts)]
    requests = [v2(p, seed=i) for i, p in enumerate(prompts)]
    requests.insert(3, v2(POISON))
    together = await asyncio.gather(
        *(predictor.infer(request, call()) for request in requests), return_exceptions=True
    )
    failed = together.pop(3)
    assert isinstance(failed, StepFailed)
    assert [files(r)[0] for r in together if isinstance(r, V2Response)] == alone


async def test_a_bad_row_is_named_and_nothing_is_drawn_for_it(
    predictor: DiffusionPredictor,
) -> None:
    with pytest.raises(InvalidRequest, match="row 1: prompt has 40000 bytes"):
        await predictor.infer(v2("a", "b" * 40_000), call())


async def test_a_caller_that_leaves_frees_its_slots(
    predictor: DiffusionPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, are_running, has_left = predictor.host._engine, threading.Event(), threading.Event()
    step = engine.step

    def spy(jobs: Sequence[DiffusionJob]) -> None:
        if len(jobs) == 4:  # none is done when their caller leaves, however fast the engine is
            are_running.set()
            assert has_left.wait(PATIENCE_S)
        step(jobs)

    monkeypatch.setattr(engine, "step", spy)
    task = asyncio.ensure_future(predictor.infer(v2(*"abcd", num_inference_steps=100), call()))
    assert await asyncio.to_thread(are_running.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    has_left.set()
    response = await predictor.infer(v2("after"), call())
    assert not engine.busy  # all five slots: the four were evicted, not drawn to the end
    assert files(response)


async def test_metadata_has_the_names_and_types_of_the_tensors(
    predictor: DiffusionPredictor,
) -> None:
    inputs = {tensor["name"]: tensor["datatype"] for tensor in predictor.get_input_types()}
    texts = {"prompt": "BYTES", "negative_prompt": "BYTES", "seed": "INT64"}
    assert inputs == texts | {"image": "BYTES", "mask": "BYTES"}
    outputs = {tensor["name"]: tensor["datatype"] for tensor in predictor.get_output_types()}
    assert outputs == {"image": "BYTES", "seed": "INT64"}
    result = ImageResult  # the chunk a job emits once
    names = {"pixels", "num_prompt_tokens", "num_unread_tokens"}
    assert result.__dataclass_fields__.keys() == names


async def test_an_unknown_output_is_refused_by_name(predictor: DiffusionPredictor) -> None:
    check_outputs(replace(v2("x"), outputs=("seed", "image")), predictor)
    with pytest.raises(InvalidRequest, match=r"no output 'picture'; .* has image, seed") as refused:
        check_outputs(replace(v2("x"), outputs=("image", "picture")), predictor)
    assert refused.value.param == "picture"


async def test_a_scrape_shows_the_loaded_tiers_and_their_precision() -> None:
    flux = replace(SETTINGS.flux, tiers="lossless,high")
    DiffusionPredictor("flux-shown", FluxModel(CHECKPOINT), replace(SETTINGS, flux=flux))
    shown = {
        (sample.labels["tier"], sample.labels["precision"]): sample.value
        for family in metrics.tier_info.collect()
        for sample in family.samples
        if sample.labels["model"] == "flux-shown"
    }
    assert shown == {("lossless", "float32"): 1, ("high", "float8_e4m3fn"): 1}


async def test_a_model_that_can_not_edit_takes_no_pictures() -> None:
    made = DiffusionPredictor(
        "flux-words", FluxModel(CHECKPOINT), replace(SETTINGS, flux=FluxSettings(edits="off"))
    )
    assert [each["name"] for each in made.get_input_types()] == [
        "prompt",
        "negative_prompt",
        "seed",
    ]
    assert "strength" not in made.get_parameters()
    assert made.get_limits()["edits"] == ["generate"]
