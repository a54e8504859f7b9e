"""LyCORIS' adapters whose change is a product of products: LoHa, (a b) * (c d) element by element,
and LoKr, the Kronecker product of two matrices. Both are low-rank changes, exactly.

LoKr's matrices may be stored whole or as two factors. Of two whole ones the rank is mostly that of
the layer itself, which no server has room for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Shape = tuple[int, ...]
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR = ("lokr_w1", "lokr_w2")
FACTORS = {f"{name}_{side}": name for name in LOKR for side in "ab"}
"""LoKr's factors, by the matrix that they make."""
KINDS = frozenset((*LOHA, *LOKR, *FACTORS))
"""Ends of the names of tensors that are read here."""


def missing_kind(kinds: Collection[str]) -> str:
    """The kind that a layer lacks beside these, or an empty string. The kinds of two ways at once
    are as a lack."""
    own = KINDS.intersection(kinds)
    if own & set(LOHA):
        return next((name for name in LOHA if name not in own), "")
    for name in LOKR:
        sides = {f"{name}_a", f"{name}_b"}
        if name not in own and not sides <= own:
            return min(sides - own) if sides & own else name
    return ""


def change_shape(shapes: Mapping[str, Shape]) -> tuple[int, int, int]:
    """Outputs, inputs and rank of the change of a layer with tensors of these shapes, by kind.
    Raises `ValueError` for shapes that do not fit to each other."""
    if any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
        raise ValueError("a layer's matrices have two dimensions")
    if LOHA[0] in shapes:
        first = _factored(shapes[LOHA[0]], shapes[LOHA[1]])
        second = _factored(shapes[LOHA[2]], shapes[LOHA[3]])
        if first[:2] != second[:2]:
            raise ValueError(f"its products are {list(first[:2])} and {list(second[:2])}")
        return *first[:2], first[2] * second[2]
    (rows, columns, rank), (more_rows, more_columns, more_rank) = (
        _side(name, shapes) for name in LOKR
    )
    return rows * more_rows, columns * more_columns, rank * more_rank


def rank_advice(shapes: Mapping[str, Shape]) -> str:
    """The end of the refusal of a LoHa or LoKr layer for its rank: the reason, and what to do."""
    sides = [shapes[name] for name in LOKR if name in shapes]
    if len(sides) < len(LOKR):
        return "; merge the adapter into its model"
    ranks = " x ".join(str(min(shape)) for shape in sides)
    return (
        f": a LoKr of two whole matrices, {list(sides[0])} and {list(sides[1])}, whose ranks "
        f"multiply ({ranks}); merge it into its model"
    )


def factor_rank(shapes: Mapping[str, Shape]) -> int:
    """The rank by which alpha is divided; 0 where it is not: LoKr of whole matrices."""
    for name in ("lokr_w2_b", "lokr_w1_b", "hada_w1_b"):
        if name in shapes:
            return shapes[name][0]
    return 0


def halves_of(tensors: Mapping[str, Array]) -> tuple[Array, Array]:
    """`down` (rank, inputs) and `up` (outputs, rank) of a layer with these tensors, without its
    factor."""
    if LOHA[0] in tensors:
        up_a, down_a, up_b, down_b = (tensors[name] for name in LOHA)
        up = up_a[:, :, None] * up_b[:, None, :]
        down = down_a[:, None, :] * down_b[None, :, :]
        return down.reshape(-1, down.shape[-1]), up.reshape(len(up), -1)
    (up_a, down_a), (up_b, down_b) = (_halves(name, tensors) for name in LOKR)
    return np.kron(down_a, down_b), np.kron(up_a, up_b)


def _factored(up: Shape, down: Shape) -> tuple[int, int, int]:
    if up[1] != down[0]:
        raise ValueError(f"its factors are {list(up)} and {list(down)}")
    return up[0], down[1], up[1]


def _side(name: str, shapes: Mapping[str, Shape]) -> tuple[int, int, int]:
    """Rows, columns and rank of one of LoKr's matrices."""
    if name not in shapes:
        return _factored(shapes[f"{name}_a"], shapes[f"{name}_b"])
    rows, columns = shapes[name]
    return rows, columns, min(rows, columns)


def _halves(name: str, tensors: Mapping[str, Array]) -> tuple[Array, Array]:
    """Of one of LoKr's matrices; a whole one is beside the identity of its smaller side."""
    if name not in tensors:
        return tensors[f"{name}_a"], tensors[f"{name}_b"]
    whole = tensors[name]
    same = np.eye(min(whole.shape), dtype=np.float32)
    return (same, whole) if len(whole) <= whole.shape[1] else (whole, same)
