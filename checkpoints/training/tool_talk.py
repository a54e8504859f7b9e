"""Tools that the captioner is trained to call, the questions they answer, and their responses.

A client writes the same tool in its own way, so the schemas vary in their optional parts. Tools
with made-up names teach it to choose by the words of a name.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from checkpoints.training import wording
from checkpoints.training.scenes import KINDS, PALETTE, SIZES

Definition = dict[str, Any]
COLOURS = tuple(PALETTE)
CITIES = ("Paris", "Rome", "Berlin", "London", "Madrid", "Oslo", "Tokyo", "Vienna", "Lisbon",
          "Cairo", "Delhi", "Lima", "Boston", "Bern", "Athens", "Dublin")  # fmt: skip
WEATHER = ("sunny", "rainy", "cloudy", "windy", "cold", "warm", "hot", "dry", "wet", "foggy")
VERBS = ("open", "close", "play", "stop", "find", "show", "get", "send", "check", "start")
NOUNS = ("door", "music", "mail", "price", "light", "news", "map", "book", "song", "file",
         "window", "report", "game", "train")  # fmt: skip
COUNT_SOME = ("How many {0} shapes are there?", "Count the {0} shapes.",
              "How many {0} shapes do you see?", "How many shapes are {0}?")  # fmt: skip
ASK_WEATHER = ("What is the weather in {0}?", "How is the weather in {0}?", "Weather in {0}?",
               "What is the weather in {0} today?", "Tell me the weather in {0}.")  # fmt: skip
ASK_SUM = ("What is {0} plus {1}?", "Add {0} and {1}.", "How much is {0} + {1}?")
ASK_TIME = ("What time is it?", "What is the time?", "Tell me the time.")
ASK_DRAW = ("Draw a {0}.", "Please draw a {0}.", "Paint a {0}.", "draw a {0}")
ASK_MADE_UP = ("{0} the {1}.", "Please {0} the {1}.", "Can you {0} the {1}?", "{0} the {1} now.")


@dataclass(frozen=True)
class Use:
    """A question, the call that answers it, the tool's response, and the sentence after it."""

    question: str
    arguments: dict[str, Any]
    response: str
    sentence: str


@dataclass(frozen=True)
class Tool:
    """A tool as the model is shown it, and a maker of its uses."""

    name: str
    definition: Definition
    use: Callable[[random.Random], Use]


def _define(
    rng: random.Random, name: str, description: str, properties: dict[str, Any], needed: list[str]
) -> Definition:
    """The tool's JSON as one of several clients writes it."""
    style = rng.random()
    parameters: Definition = {"type": "object", "properties": properties}
    if style < 0.25:  # as pydantic writes schemas
        titled = {key: {**value, "title": key.capitalize()} for key, value in properties.items()}
        parameters = {"properties": titled, "required": needed, "title": f"{name}_args",
                      "type": "object", "additionalProperties": False}  # fmt: skip
    elif style < 0.45:
        parameters = {"properties": properties, "type": "object"}
    if style >= 0.25 and needed:
        parameters["required"] = needed
    if style > 0.85:
        parameters["additionalProperties"] = False
    function: Definition = {"name": name, "description": description, "parameters": parameters}
    if rng.random() < 0.1:
        del function["description"]
    if rng.random() < 0.2:
        function["strict"] = rng.random() < 0.6
    return {"type": "function", "function": function}


def _word(values: tuple[str, ...], rng: random.Random) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)} if rng.random() < 0.3 else {"type": "string"}


def count_shapes(rng: random.Random) -> Tool:
    """The tool that counts, with a colour to choose or without."""
    takes_colour = rng.random() < 0.5

    def use(rng: random.Random) -> Use:
        number = rng.randint(0, 9)
        colour = rng.choice(COLOURS) if takes_colour and rng.random() < 0.5 else ""
        question = rng.choice(COUNT_SOME).format(colour) if colour else rng.choice(wording.COUNT)
        shapes = "shape" if number == 1 else "shapes"
        named = f"{colour} {shapes}".strip()
        response = rng.choice((str(number), str(number), f'{{"count": {number}}}',
                               f"{number} {shapes}"))  # fmt: skip
        verb = "is" if number == 1 else "are"
        arguments = {"colour": colour} if colour else {}
        return Use(question, arguments, response, f"There {verb} {number} {named}.")

    properties = {"colour": _word(COLOURS, rng)} if takes_colour else {}
    text = rng.choice(("Count the shapes.", "Count the shapes in the picture.",
                       "Counts the shapes in the picture."))  # fmt: skip
    return Tool("count_shapes", _define(rng, "count_shapes", text, properties, []), use)


def _weather(rng: random.Random) -> Tool:
    def use(rng: random.Random) -> Use:
        city, now = rng.choice(CITIES), rng.choice(WEATHER)
        response = rng.choice((now, now, f'{{"weather": "{now}"}}'))
        sentence = f"The weather in {city} is {now}."
        return Use(rng.choice(ASK_WEATHER).format(city), {"city": city}, response, sentence)

    text = rng.choice(("The weather in a city.", "Get the weather.", "Get the weather of a city."))
    properties = {"city": {"type": "string"}}
    return Tool("get_weather", _define(rng, "get_weather", text, properties, ["city"]), use)


def _sum(rng: random.Random) -> Tool:
    def use(rng: random.Random) -> Use:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        question = rng.choice(ASK_SUM).format(a, b)
        return Use(question, {"a": a, "b": b}, str(a + b), f"The result is {a + b}.")

    kind = {"type": rng.choice(("integer", "integer", "number"))}
    text = rng.choice(("Add two numbers.", "The sum of two numbers."))
    return Tool("add", _define(rng, "add", text, {"a": kind, "b": kind}, ["a", "b"]), use)


def _time(rng: random.Random) -> Tool:
    def use(rng: random.Random) -> Use:
        now = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        return Use(rng.choice(ASK_TIME), {}, now, f"It is {now}.")

    return Tool("get_time", _define(rng, "get_time", "The time of the day.", {}, []), use)


def _draw(rng: random.Random) -> Tool:
    def use(rng: random.Random) -> Use:
        size, colour, kind = rng.choice(SIZES), rng.choice(COLOURS), rng.choice(KINDS)
        words = f"{size} {colour} {kind}"
        arguments = {"kind": kind, "colour": colour, "size": size}
        response = rng.choice(("done", "ok", "Done."))
        question = rng.choice(ASK_DRAW).format(words)
        return Use(question, arguments, response, f"I have drawn a {words}.")

    properties = {"kind": _word(KINDS, rng), "colour": _word(COLOURS, rng),
                  "size": _word(SIZES, rng)}  # fmt: skip
    definition = _define(rng, "draw_shape", "Draw a shape.", properties, list(properties))
    return Tool("draw_shape", definition, use)


def _made_up(rng: random.Random) -> Tool:
    verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
    name = f"{verb}_{noun}"

    def use(rng: random.Random) -> Use:
        question = rng.choice(ASK_MADE_UP).format(verb, noun)
        return Use(question[0].upper() + question[1:], {}, "done", "Done.")

    return Tool(name, _define(rng, name, f"{verb.capitalize()} the {noun}.", {}, []), use)


MAKERS = (
    count_shapes,
    count_shapes,
    count_shapes,
    _weather,
    _sum,
    _time,
    _draw,
    _made_up,
    _made_up,
)


def choose(rng: random.Random) -> list[Tool]:
    """One to three tools with different names, in any order."""
    wanted = rng.choices((1, 2, 3), (65, 27, 8))[0]
    found: dict[str, Tool] = {}
    while len(found) < wanted:
        tool = rng.choice(MAKERS)(rng)
        found.setdefault(tool.name, tool)
    return list(found.values())


def arguments_of(text: str) -> tuple[str, dict[str, Any]] | None:
    """The name and the arguments of an answer that is exactly one call, or None."""
    start, end = "<tool_call>\n", "\n</tool_call>"
    if not (text.startswith(start) and text.endswith(end)):
        return None
    try:
        call = json.loads(text[len(start) : -len(end)])
    except ValueError:
        return None
    return (call["name"], call["arguments"]) if set(call) == {"name", "arguments"} else None
