"""Adapters of a served chat model: names and fields of both protocols, additions and removals."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from predictors.__main__ import build
from predictors.chat.predictor import ChatPredictor
from predictors.operators.lora_routes import TakesLoras
from predictors.protocol.serves import ServesAdapters
from predictors.settings import QwenVLSettings, Settings
from tests.chat.adapters.conftest import Adapted
from tests.chat.room import CHECKPOINT, GREEDY, chat, png
from tests.http.echo import CALM, PATIENCE_S, Running, serving, small_settings

PICTURE, QUESTION = png(3, 120, 90), "describe this picture"
SETTINGS = Settings(
    server=small_settings().server,
    overload=CALM,
    qwen_vl=QwenVLSettings(slots=4, max_context=512, lora_max_rank=8),
)
ASKED = chat(PICTURE, QUESTION, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def predictor(adapters: Adapted) -> ChatPredictor:
    """With a slot for each adapter that it is given."""
    given = {name: adapters.folders[name] for name in ("words", "eyes")}
    made = build("seer", CHECKPOINT, SETTINGS, loras={"seer": given})
    assert isinstance(made, ChatPredictor)
    assert isinstance(made, TakesLoras)
    assert isinstance(made, ServesAdapters)
    assert made.adapter_names == ("words", "eyes")
    return made


@pytest.fixture(scope="module")
def running(predictor: ChatPredictor) -> Iterator[Running]:
    with serving(predictor, settings=SETTINGS) as server:  # type: ignore[arg-type]
        yield server


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as client:
        yield client


@pytest.fixture(scope="module")
def expected(adapters: Adapted) -> dict[tuple[str, ...], str]:
    """The answers' texts by the names of adapters."""
    tokenizer = adapters.room.model.tokenizer
    return {
        names: tokenizer.decode(adapters.room.answer(adapters.request(ASKED, *names)))
        for names in ((), ("words",), ("eyes",), ("both",), ("eyes", "words"))
    }


def body(model: str = "seer", **more: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    sampling = {"temperature": 0, "repetition_penalty": GREEDY.repetition_penalty}
    turns = [{"role": "user", "content": content}]
    given = {"model": model, "messages": turns, "max_tokens": 6, "ignore_eos": True}
    return {**given, **sampling, **more}


def asked(client: httpx.Client, model: str = "seer", **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/chat/completions", json=body(model, **more))
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


def text(answer: dict[str, Any]) -> str:
    found: str = answer["choices"][0]["message"]["content"]
    return found


def test_the_models_name_and_the_field_ask_for_adapters(
    client: httpx.Client, expected: dict[tuple[str, ...], str]
) -> None:
    plain = asked(client)
    assert text(plain) == expected[()]
    assert "loras" not in plain
    named = asked(client, "seer:eyes")
    assert (text(named), named["loras"]) == (expected["eyes",], [{"name": "eyes", "scale": 1.0}])
    assert named["model"] == "seer:eyes"
    assert text(asked(client, loras=[{"name": "words"}])) == expected["words",]
    for both in (asked(client, loras=[{"name": "words"}, {"name": "eyes", "scale": 1}]),
                 asked(client, "seer:words", loras=[{"name": "eyes"}])):  # fmt: skip
        assert text(both) == expected["eyes", "words"]
        assert {each["name"] for each in both["loras"]} == {"eyes", "words"}
    assert text(asked(client, loras=[{"name": "words", "scale": 0}])) == expected[()]


def test_a_stream_has_the_same_text_and_says_which_were_used(
    client: httpx.Client, expected: dict[tuple[str, ...], str]
) -> None:
    reply = client.post("/v1/chat/completions", json=body("seer:words", stream=True))
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    found = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert found == expected["words",]
    assert chunks[-1]["loras"] == [{"name": "words", "scale": 1.0}]


def test_v2_takes_the_same_json_as_a_text(
    client: httpx.Client, expected: dict[tuple[str, ...], str]
) -> None:
    def ask(path: str, **more: str) -> dict[str, Any]:
        tensors = {"prompt": QUESTION, "image": base64.b64encode(PICTURE).decode()}
        inputs = [
            {"name": name, "datatype": "BYTES", "shape": [1], "data": [value]}
            for name, value in tensors.items()
        ]
        sampling = {"temperature": 0, "repetition_penalty": GREEDY.repetition_penalty}
        parameters = {"max_tokens": 6, **sampling, **more}
        reply = client.post(path, json={"inputs": inputs, "parameters": parameters})
        found: dict[str, Any] = reply.raise_for_status().json()
        return found

    answer = ask("/v2/models/seer/infer", loras='[{"name": "eyes"}]')
    texts = {each["name"]: each["data"] for each in answer["outputs"]}
    assert expected["eyes",].startswith(texts["text"][0])
    assert json.loads(answer["parameters"]["loras"]) == [{"name": "eyes", "scale": 1.0}]
    answer = ask("/v2/models/seer:words/infer")
    assert json.loads(answer["parameters"]["loras"]) == [{"name": "words", "scale": 1.0}]
    described = client.get("/v2/models/seer").raise_for_status().json()
    assert described["parameters"]["loras"]["type"] == "string"


@pytest.mark.parametrize(
    ("model", "loras", "status", "says"),
    [
        ("seer:nobody", None, 404, "no adapter 'nobody'"),
        ("seer", [{"name": "nobody"}], 400, "no adapter 'nobody'; served: words, eyes"),
        ("seer", [{"name": "words"}, {"name": "words"}], 400, "'words' is given twice"),
        ("seer:words", [{"name": "words"}], 400, "'words' is given twice"),
        ("seer", [{"name": "words", "scale": 5}], 400, "scale"),
        ("seer", [{"name": "words", "scale": "1"}], 400, "scale"),
        ("seer", [{"name": "../words"}], 400, "name"),
        ("seer", "words", 400, "loras"),
        ("seer", [{"name": "words"}] * 9, 400, "loras"),
        ("seer", [{"scale": 1}], 400, "name"),
    ],
)
def test_what_is_not_there_or_no_adapter_is_refused(
    client: httpx.Client, model: str, loras: object, status: int, says: str
) -> None:
    more = {} if loras is None else {"loras": loras}
    reply = client.post("/v1/chat/completions", json=body(model, **more))
    assert reply.status_code == status
    assert says in reply.json()["error"]["message"]


def test_the_models_are_listed_with_their_adapters(client: httpx.Client) -> None:
    cards = client.get("/v1/models").raise_for_status().json()["data"]
    assert {card["id"]: card.get("parent") for card in cards} == {
        "seer": None, "seer:words": "seer", "seer:eyes": "seer",
    }  # fmt: skip


def test_an_adapter_is_added_and_removed_while_others_are_answered(
    client: httpx.Client,
    running: Running,
    predictor: ChatPredictor,
    adapters: Adapted,
    expected: dict[tuple[str, ...], str],
) -> None:
    """Requests run on two connections meanwhile; none is lost or gets another's answer."""
    names = [(), ("words",), ("eyes",)]
    found: list[tuple[tuple[str, ...], str]] = []
    is_over, answered = threading.Event(), threading.Semaphore(0)

    def traffic(first: int) -> None:
        turn = first
        with running.client() as other:
            while not is_over.is_set():
                own = names[turn % 3]
                turn += 1
                found.append((own, text(asked(other, loras=[{"name": name} for name in own]))))
                answered.release()

    threads = [threading.Thread(target=traffic, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            summary = predictor.add_lora("more", adapters.folders["both"])
            assert summary.linears.keys() == {"language model", "vision tower"}
            assert text(asked(client, "seer:more")) == expected["both",]
            assert answered.acquire(timeout=PATIENCE_S)
            predictor.remove_lora("more")
            gone = client.post("/v1/chat/completions", json=body("seer:more"))
            assert gone.status_code == 404
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert all(answer == expected[own] for own, answer in found)
