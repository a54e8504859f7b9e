"""Mixes from files, and what is wrong with others."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from predictors.cli.bench.mix import mix_for, read_mix
from predictors.cli.models import ListedModel
from predictors.cli.outcomes import VerbFailed

MIX = """
requests:
  - {name: describe, weight: 3, prompt: "what?", picture: scene.png, body: {max_tokens: 8}}
  - {name: draw, kind: images, model: flux, prompts: [a, b], body: {num_inference_steps: 2}}
  - {name: raw, kind: v2, model: a/b, body: {inputs: []}}
"""
MODELS = [ListedModel("flux", "images"), ListedModel("qwen-vl", "chat")]


def test_a_mix_is_drawn_by_weight_and_asked_on_the_right_routes(tmp_path: Path) -> None:
    (tmp_path / "scene.png").write_bytes(b"a picture")
    (tmp_path / "mix.yaml").write_text(MIX)
    mix = mix_for(read_mix(tmp_path / "mix.yaml"), MODELS, None)
    assert mix.weights == (3.0, 1.0, 1.0)
    chat, image, raw = mix.first_of_each()
    assert chat.path == "/v1/chat/completions"
    body = json.loads(chat.content)
    assert (body["model"], body["max_tokens"], body["stream"]) == ("qwen-vl", 8, True)
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64")
    assert image.path == "/v1/images/generations"
    assert json.loads(image.content)["num_inference_steps"] == 2
    assert raw.path == "/v2/models/a%2Fb/infer"
    assert json.loads(raw.content) == {"inputs": []}
    rng = random.Random(1)
    drawn = [mix.draw(rng).name for _ in range(1000)]
    assert 500 < drawn.count("describe") < 700


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs a list `requests`"),
        ("[", "is neither JSON nor YAML"),
        ("!!python/object/apply:os.system [ls]", "is neither JSON nor YAML"),
        ("[" * 5000, "is neither JSON nor YAML"),
        ("requests: []", "needs a list"),
        ("[7]", r"requests\[0\] is no object"),
        ("[{promt: a}]", "has 'promt'; known are body"),
        ("[{prompt: a, kind: v3}]", "kind is one of chat, images, v2"),
        ("[{prompt: a, weight: 0}]", "weight is a number above 0"),
        ("[{prompt: a, weight: .inf}]", "weight is a number above 0"),
        ("[{prompt: a, weight: true}]", "weight is a number above 0"),
        ("[{prompts: [1]}]", "prompts, name, model and picture are text"),
        ("[{prompt: a, body: []}]", "body is an object"),
        ("[{kind: chat}]", "needs a prompt, or a body"),
    ],
)
def test_a_wrong_mix_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(VerbFailed, match=said):
        read_mix(tmp_path / "mix.yaml")
