"""A type and a tool of the clients' programs: a shape, and a function that counts shapes."""

from __future__ import annotations

from typing import Any, Literal

Shape = Literal["circle", "square", "triangle"]
SHAPES = ("circle", "square", "triangle")
COUNT_SCHEMA: dict[str, Any] = {
    "title": "count_shapes",
    "description": "Counts the shapes of one kind.",
    "type": "object",
    "properties": {"shape": {"type": "string", "enum": list(SHAPES)}},
    "required": ["shape"],
    "additionalProperties": False,
}
