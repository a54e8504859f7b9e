"""Adapters of a served model: requests of both protocols, keys, additions and removals."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from predictors import metrics
from predictors.diffusion.predictor import DiffusionPredictor
from predictors.errors import Forbidden, InvalidRequest, NotFound
from predictors.models.flux.predictor import make_predictor
from predictors.protocol.call import AdapterAccess, Call
from predictors.protocol.openai.images_body import read_images_body
from predictors.protocol.v2.rest import capabilities
from predictors.protocol.v2.values import Tensor, V2Request, V2Response
from predictors.settings import ComputeSettings, FluxSettings, Settings
from tests.diffusion.driver import CHECKPOINT
from tests.models.flux.adapters.adapter_files import (
    CLIP_Q,
    SINGLE,
    diffusers,
    halves,
    kohya,
    saved,
)

FLUX = FluxSettings(
    sizes="64x64", default_size="64x64", max_sequence_length=16, lora_max_active=3, lora_max_rank=8,
)  # fmt: skip
SETTINGS = Settings(compute=ComputeSettings(device="cpu"), flux=FLUX)
PATHS = [f"{SINGLE}.proj_out", f"{SINGLE}.attn.to_q", CLIP_Q]


def adapter(folder: Path, name: str, seed: int, rank: int = 4) -> Path:
    changes = {path: halves(path, rank, seed) for path in PATHS}
    scaled = {path: (down / 8, up / 8) for path, (down, up) in changes.items()}
    return saved(folder, diffusers(scaled), f"{name}.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def predictor(folder: Path) -> AsyncIterator[DiffusionPredictor]:
    loras = {"a": adapter(folder, "a", 1), "b": adapter(folder, "b", 2)}
    made = make_predictor("flux-loras", CHECKPOINT, SETTINGS, loras=loras)
    assert made.adapter_names == ("a", "b")  # before the engine loads
    await asyncio.to_thread(made.load)
    yield made
    await asyncio.to_thread(made.stop)


pytestmark = pytest.mark.asyncio(loop_scope="module")


def v2(loras: Any = None, **parameters: Any) -> V2Request:
    given = {} if loras is None else {"loras": json.dumps(loras)}
    values = {"num_inference_steps": 2, "seed": 1} | given | parameters
    return V2Request(
        "flux-loras", "", (Tensor("prompt", "BYTES", (1,), [b"a red circle"]),), values
    )


def with_text(loras: Any) -> V2Request:
    return replace(v2(), parameters={"loras": loras})


def call(own: str = "", allowed: frozenset[str] | None = None) -> Call:
    made = Call({}, protocol="v2_rest")
    if own or allowed is not None:
        made.adapters = AdapterAccess(own, allowed)
    return made


def file(response: V2Response) -> object:
    return response.outputs[0].data[0]


async def test_both_protocols_draw_the_same_with_the_same_adapters(
    predictor: DiffusionPredictor,
) -> None:
    plain = await predictor.infer(v2(), call())
    with_a = await predictor.infer(v2([{"name": "a", "scale": 0.5}]), call())
    both = await predictor.infer(v2([{"name": "b"}, {"name": "a", "scale": -1}]), call())
    assert len({file(plain), file(with_a), file(both)}) == 3
    assert "loras" not in plain.parameters
    assert json.loads(str(both.parameters["loras"])) == [
        {"name": "b", "scale": 1.0}, {"name": "a", "scale": -1.0},
    ]  # fmt: skip
    body = {"model": "x", "prompt": "a red circle", "seed": 1, "num_inference_steps": 2}
    reply = await predictor.images(
        read_images_body(body | {"loras": [{"name": "a", "scale": 0.5}]}), call()
    )
    assert base64.b64decode(reply["data"][0]["b64_json"]) == file(with_a)
    assert reply["loras"] == [{"name": "a", "scale": 0.5}]
    assert "loras" not in await predictor.images(read_images_body(body), call())


async def test_scale_0_and_none_are_the_picture_without(predictor: DiffusionPredictor) -> None:
    plain = await predictor.infer(v2(), call())
    for loras in ([], [{"name": "a", "scale": 0}]):
        answer = await predictor.infer(v2(loras), call())
        assert file(answer) == file(plain)
        assert "loras" not in answer.parameters


async def test_the_models_name_stands_for_its_adapter(predictor: DiffusionPredictor) -> None:
    named = await predictor.infer(v2([{"name": "a"}]), call())
    assert file(await predictor.infer(v2(), call("a"))) == file(named)
    both = await predictor.infer(v2([{"name": "a"}, {"name": "b", "scale": 2}]), call())
    assert file(await predictor.infer(v2([{"name": "b", "scale": 2}]), call("a"))) == file(both)
    with pytest.raises(InvalidRequest, match="adapter 'a' is asked for twice"):
        await predictor.infer(v2([{"name": "a"}]), call("a"))


async def test_wrong_adapters_are_refused_with_the_names_that_there_are(
    predictor: DiffusionPredictor,
) -> None:
    with pytest.raises(InvalidRequest, match=r"there is no adapter 'c'; loaded: a, b"):
        await predictor.infer(v2([{"name": "c"}]), call())
    with pytest.raises(InvalidRequest, match="loras must be a string, not"):
        await predictor.infer(with_text(1), call())
    with pytest.raises(InvalidRequest, match="is a text such as"):
        await predictor.infer(with_text("a:0.8"), call())


async def test_a_key_for_an_adapter_may_use_that_alone(predictor: DiffusionPredictor) -> None:
    only = frozenset({"a"})
    assert await predictor.infer(v2(), call("a", only))
    with pytest.raises(Forbidden, match="the API key may not use adapter 'b' of 'flux-loras'"):
        await predictor.infer(v2([{"name": "b"}]), call("a", only))
    with pytest.raises(Forbidden, match="may not use adapter 'zzz'"):  # names no other
        await predictor.infer(v2([{"name": "zzz"}]), call("a", only))


async def test_metadata_lists_the_adapters(predictor: DiffusionPredictor) -> None:
    shown = capabilities(predictor)
    assert shown["limits"]["loras"] == ["a", "b"]
    assert shown["limits"]["max_loras"] == 8
    assert shown["parameters"]["loras"]["type"] == "string"


async def test_an_adapter_comes_and_goes_while_pictures_are_drawn(
    predictor: DiffusionPredictor, folder: Path
) -> None:
    """None of the requests that were accepted loses its adapter."""
    path = adapter(folder, "c", 3)
    summary = await asyncio.to_thread(predictor.add_lora, "c", path)
    assert summary.rank == 4
    assert summary.linears == {"transformer": 2, "text_encoder": 1}
    alone = {x: file(await predictor.infer(v2([{"name": x}]), call())) for x in "abc"}
    assert len(set(alone.values())) == 3
    running = [
        asyncio.ensure_future(predictor.infer(v2([{"name": name}]), call())) for name in "cacbc"
    ]
    await asyncio.sleep(0)  # all are checked, and none has a place yet
    assert not any(task.done() for task in running)
    await asyncio.to_thread(predictor.remove_lora, "c")
    drawn = await asyncio.gather(*running)
    assert [file(answer) for answer in drawn] == [alone[name] for name in "cacbc"]
    assert predictor.adapter_names == ("a", "b")
    with pytest.raises(InvalidRequest, match="there is no adapter 'c'"):
        await predictor.infer(v2([{"name": "c"}]), call())
    with pytest.raises(NotFound, match=r"has no adapter 'c'; loaded: a, b"):
        await asyncio.to_thread(predictor.remove_lora, "c")
    assert file(await predictor.infer(v2([{"name": "a"}]), call())) == alone["a"]
    await asyncio.to_thread(predictor.add_lora, "c", path)
    assert file(await predictor.infer(v2([{"name": "c"}]), call())) == alone["c"]
    await asyncio.to_thread(predictor.remove_lora, "c")


async def test_what_can_not_be_added_leaves_all_as_it_was(
    predictor: DiffusionPredictor, folder: Path
) -> None:
    path = adapter(folder, "d", 4)
    for name, of, message in (
        ("a", path, "adapter 'a' is loaded already"),
        ("x:y", path, "an adapter's name has"),
        ("d", folder / "none", "there is no file or folder none"),
        ("d", adapter(folder, "e", 5, rank=9), "has rank 9; at most 8"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            await asyncio.to_thread(predictor.add_lora, name, of)
    assert predictor.adapter_names == ("a", "b")


async def test_pictures_are_counted_by_adapter(predictor: DiffusionPredictor) -> None:
    series = metrics.lora_images_total.labels("flux-loras", "b")
    before = series._value.get()
    await predictor.infer(v2([{"name": "b"}]), call())
    await predictor.infer(v2(), call())
    assert series._value.get() == before + 1


async def test_an_adapter_that_does_not_fit_fails_the_start(tmp_path: Path) -> None:
    bad = saved(
        tmp_path,
        kohya(
            "lora_unet_double_blocks_0_img_attn_proj",
            *(np.zeros((2, 7), np.float32), np.zeros((7, 2), np.float32)),
        ),
    )
    with pytest.raises(InvalidRequest, match="has shape"):
        make_predictor("flux-bad", CHECKPOINT, SETTINGS, loras={"a": bad})
    off = replace(SETTINGS, flux=replace(FLUX, lora_max_active=0))
    good = adapter(tmp_path, "a", 1)
    made = make_predictor("flux-off", CHECKPOINT, off, loras={"a": good})  # has room for it
    assert made.settings.flux.lora_max_active == 1
    with pytest.raises(InvalidRequest, match="switched off"):
        make_predictor("flux-off", CHECKPOINT, off).add_lora("a", good)
