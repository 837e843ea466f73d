"""How weights are stored, one storage a file; importing the room makes every storage known by its kind."""

from featherweight.packed.dense import Dense
from featherweight.packed.floating import Floating
from featherweight.packed.integer import Integer
from featherweight.packed.lattice import Lattice
from featherweight.packed.low_rank import LowRank
from featherweight.packed.masked import Masked
from featherweight.packed.normal_float import NormalFloat
from featherweight.packed.rotated import Rotated
from featherweight.packed.rounded_input import RoundedInput
from featherweight.packed.sliced import Sliced
from featherweight.packed.sparse_rows import SparseRows
from featherweight.packed.sum import Sum
from featherweight.packed.two_level import TwoLevel

__all__ = [
    "Dense",
    "Floating",
    "Integer",
    "Lattice",
    "LowRank",
    "Masked",
    "NormalFloat",
    "Rotated",
    "RoundedInput",
    "Sliced",
    "SparseRows",
    "Sum",
    "TwoLevel",
]
