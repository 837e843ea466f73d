"""How weights are stored, one storage a file; importing the room makes every storage known by its kind."""

from featherweight.packed.dense import Dense
from featherweight.packed.integer import Integer

__all__ = ["Dense", "Integer"]
