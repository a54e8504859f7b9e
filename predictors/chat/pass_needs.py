"""The promised passes that a request can't do without, as needs of a `WarmPlan`.

Rows of a decode step and parts of prompts fit into whatever widths are warm. Where answers may not
depend on others, a prompt is cut by its own length at any time: it needs just those widths. A
picture needs the graph of its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from predictors.chat.promised import PassKind
from predictors.chat.work import ChatWork


@dataclass(frozen=True, slots=True)
class PassNeeds:
    """Says which promised passes a request of one engine needs. Any thread."""

    chunk_widths: Sequence[int]
    """All promised widths of passes over prompts, ascending."""
    graph_of: Callable[[int], int | None]
    """`PictureRunner.graph_of`."""
    is_fixed: bool
    """A prompt is read once, alone, from its first token on."""

    def of(self, work: ChatWork) -> set[Hashable]:
        """The needs of a request: kinds and widths of passes."""
        found: set[Hashable] = {(PassKind.TOWER, width) for width in self.graphs_of(work)}
        if self.is_fixed:
            found |= {(PassKind.PROMPT, width) for width in self.widths_of(work.num_prompt_tokens)}
        return found

    def graphs_of(self, work: ChatWork) -> set[int]:
        """Widths of the graphs of its pictures."""
        sizes = {math.prod(placed.prepared.grid) for placed in work.pictures}
        return {width for size in sizes if (width := self.graph_of(size)) is not None}

    def widths_of(self, num_tokens: int) -> set[int]:
        """Widths of the passes over a prompt that is read once and alone."""
        largest = self.chunk_widths[-1]
        rest = num_tokens % largest or largest
        last = next(width for width in self.chunk_widths if width >= rest)
        return {last} | ({largest} if num_tokens > largest else set())


NO_NEEDS = PassNeeds((), lambda num_patches: None, is_fixed=False)
"""Needs of an engine that warms all passes before it is ready."""
