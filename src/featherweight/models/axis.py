"""One feature dimension inside a block, as data: who reads it, who makes it, which maps of it can be folded away."""

from __future__ import annotations

from dataclasses import dataclass

DIAGONAL, PERMUTATION, ORTHOGONAL = "diagonal", "permutation", "orthogonal"

#: A rotation whose signs became real factors; never folded.
SCALED = "scaled rotation"


@dataclass(frozen=True)
class Producer:
    """A module whose tensors make an axis, element by element.

    Attributes:
        name: module path.
        kind: "norm" (its weight `[size]` scales the axis) or "linear" (rows of its weight make the axis).
        admits: the maps that can be folded into it: "diagonal", "permutation", "orthogonal".
        rows: for each column of the axis the row that makes it, `[size]`; None means column c is made by row c. With
            grouped-query heads several columns share a row.
        offset: what the norm adds to its weight before it multiplies (Gemma: 1).
    """

    name: str
    kind: str
    admits: frozenset[str]
    rows: tuple[int, ...] | None = None
    offset: float = 0.0


@dataclass(frozen=True)
class Axis:
    """One feature dimension inside a block.

    Attributes:
        name: unique in the model: its first consumer's path, followed by `.input`.
        block: module path of the block.
        size: number of columns.
        consumers: the linears that read exactly this tensor, in the order of execution.
        others: modules with tensors of their own that read it and are no linears of ours (routers, experts, norms).
        producers: what makes it; empty until `find_producers` has looked.
        admits: maps that can be folded exactly: into the producers, and out of every consumer.
        shared: for each column the class of columns that one row of a producer makes, `[size]`; a map must treat the columns
            of a class alike. None means that no two columns share a row.
        expert: module path of the expert that reads it, whose tokens alone it sees; "" where all tokens come by.
        groups: for each column the group (an attention head) that a permutation or rotation must not leave, `[size]`. None
            means that the whole axis is one group.
    """

    name: str
    block: str
    size: int
    consumers: tuple[str, ...]
    others: tuple[str, ...] = ()
    producers: tuple[Producer, ...] = ()
    admits: frozenset[str] = frozenset()
    shared: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    expert: str = ""
