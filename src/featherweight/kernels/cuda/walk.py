"""Blocks of columns fitted, selected and walked in one launch, or in four where all weights of a linear compete."""

from __future__ import annotations

import ctypes
from itertools import accumulate

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.cuda import driver
from featherweight.kernels.keeping import Keeping
from featherweight.kernels.two_level import TwoLevelFitting
from featherweight.kernels.walking import MOST, Dropping, WalkBlock, Walking

#: Rows of a tile (a block of threads) at least, and threads of a row.
ROWS, WARPS = 32, 4

#: Digits of a score: as many values as the first has, as the others have, and as all have together.
FIRST_DIGITS, NEXT_DIGITS, DIGITS = 2048, 1024, 4096

FITS = {"minmax": 1, "weighted": 2, "mse": 3}
TWO_LEVELS = {"minmax": 4, "weighted": 5}
SCALES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
ROUNDINGS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
DROPS = {"given": 1, "n of m": 2, "least": 3}
FITTED = {"all": 0, "kept": 1, "made up": 2}


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "target", "original", "feedback", "importance", "scale", "zero", "codes", "halves", "loss", "dropped", "scores",
            "counts", "tile_counts", "group_index", "linear", "scale_codes", "zero_codes", "scale_grids", "zero_grids", "residual",
        )),
        *((name, ctypes.c_int) for name in ("inputs", "rows", "first", "columns", "group", "size")),
        *((name, ctypes.c_float) for name in ("gain", "threshold")),
    )  # fmt: skip


def open_walk(walking: Walking, dropping: Dropping | None) -> WalkBlock:
    """As `featherweight.kernels.reference.walk.open_walk`; rows of linears that compete are multiples of 32.

    Raises:
        FeatherweightError: the compiler's words, or the driver's.
    """
    return _Blocks(walking, dropping)


class _Blocks:
    """The kernels of one walk, compiled, and their arguments, of which only the place changes from block to block."""

    def __init__(self, walking: Walking, dropping: Dropping | None) -> None:
        inputs, rows = walking.target.shape
        device = walking.target.device
        self.size, self.walking = walking.size, walking
        self.dropping = dropping
        self.halves = torch.empty(3 * MOST * rows, dtype=torch.bfloat16, device=device)
        given = self.arguments = _Arguments(inputs=inputs, rows=rows)
        for name in ("target", "original", "feedback", "importance", "scale", "zero", "codes", "loss"):
            setattr(given, name, getattr(walking, name).data_ptr())
        given.halves = self.halves.data_ptr()
        if walking.group_index is not None:
            given.group_index = walking.group_index.data_ptr()
        if dropping is not None:
            given.dropped = dropping.dropped.data_ptr()
        if isinstance(walking.fitting, TwoLevelFitting):
            _tell_two_levels(given, walking, walking.fitting)
        self.competing = _Competing(dropping, inputs, rows, device) if dropping and dropping.how == "least" else None
        self.constants = _constants(walking, dropping)
        kernels = [(driver.load("walk.cu", "walk", driver.constants_of(self.constants), device), _shared_bytes(self.constants))]
        if self.competing is not None:
            given.scores, given.tile_counts = (each.data_ptr() for each in (self.competing.scores, self.competing.tile_counts))
            alone = {**self.constants, "ROUND": 3, "FIT": 0, "DROPS": 0, "FITTED": 0, "SCORES": 1, "LARGEST": 0, "SCATTERED": 0}
            count = [driver.load("walk_count.cu", "walk_count", (("DIGIT", digit),), device) for digit in (1, 2)]
            score = driver.load("walk.cu", "walk", driver.constants_of(alone), device), _shared_bytes(alone)
            kernels = [score, *((each, 4 * (NEXT_DIGITS + WARPS * ROWS + 3)) for each in count), *kernels]
        tile = self.constants["TILE"]
        grid, block = (-(-rows // tile), 1, 1), (WARPS * tile, 1, 1)
        self.launches = [each.bind(grid, block, shared, [given]) for each, shared in kernels]
        # feedback is read before the kernel ahead is waited for: the first must not begin before what wrote it has ended
        self.first = kernels[0][0].bind(grid, block, kernels[0][1], [given], overlapped=False)

    def __call__(self, first: int, last: int) -> Tensor:
        given, columns = self.arguments, last - first
        given.first, given.columns = first, columns
        runs = self.walking.fitting is not None and self.walking.group_index is None
        given.group, given.size = (first // self.size, self.size) if runs else (0, columns)
        if self.competing is not None:
            given.counts, given.linear = self.competing.place(first, columns)
        for number, launch in enumerate(self.launches):
            (launch if first or number else self.first)()
        return self.halves[: 3 * columns * given.rows].view(3 * columns, given.rows)


class _Competing:
    """Scratch of blocks whose weights compete within their linears: scores, how often each digit occurs, and how many go."""

    def __init__(self, dropping: Dropping, inputs: int, rows: int, device: torch.device) -> None:
        assert dropping.counts is not None
        if any(each % ROWS for each in dropping.linears):
            raise FeatherweightError("tiles would cut a linear", found=list(dropping.linears), expected=f"multiples of {ROWS}")
        tiles = [each // ROWS for each in dropping.linears]
        starts = [0, *accumulate(tiles)]
        self.scores = torch.empty(MOST, rows, device=device)
        self.tile_counts = torch.empty(sum(tiles), NEXT_DIGITS, dtype=torch.int32, device=device)
        self.counts = torch.zeros(-(-inputs // MOST), len(tiles), DIGITS, dtype=torch.int32, device=device)
        self.linear = {}
        for columns in {min(MOST, inputs), inputs % MOST or MOST}:
            gone = dropping.counts(columns)
            if min(gone) < 1:
                raise FeatherweightError("nothing goes of a linear", found=gone, expected="at least 1 weight of each")
            told = [[index, starts[index], gone[index]] for index, count in enumerate(tiles) for _ in range(count)]
            self.linear[columns] = torch.tensor(told, dtype=torch.int32).to(device, non_blocking=True)

    def place(self, first: int, columns: int) -> tuple[int, int]:
        """Addresses of a block's counts and of what its tiles are told."""
        counts = self.counts.data_ptr() + first // MOST * self.counts.stride(0) * self.counts.element_size()
        return counts, self.linear[columns].data_ptr()


def _tell_two_levels(given: _Arguments, walking: Walking, fitting: TwoLevelFitting) -> None:
    """Where the second level is written, and what is kept."""
    assert walking.second_level is not None
    for name, tensor in vars(walking.second_level).items():
        setattr(given, name, tensor.data_ptr())
    given.gain = 0.0 if fitting.gain is None else fitting.gain
    if walking.keeping is not None:
        given.threshold, given.dropped = walking.keeping.threshold, walking.keeping.kept.data_ptr()
        given.residual = walking.keeping.residual.data_ptr()


def _two_level_constants(fitting: TwoLevelFitting, keeping: Keeping | None) -> dict[str, int]:
    """What the source wants defined of a grid with two levels."""
    by = "weighted" if fitting.weighted else "minmax"
    return {
        "ROUND": 0, "FIT": TWO_LEVELS[by], "LARGEST": fitting.largest_code, "SECOND": fitting.second,
        "SCALE_LEVELS": fitting.scale_levels, "ZERO_LEVELS": fitting.zero_levels, "LEAVES_OUT": int(fitting.gain is not None),
        "TILE": max(ROWS, fitting.second), "OUTLIERS": int(keeping is not None), "NARROW": int(keeping is not None and keeping.narrow),
    }  # fmt: skip


def _constants(walking: Walking, dropping: Dropping | None) -> dict[str, int]:
    """As the source wants them defined."""
    fitting = walking.fitting
    constants = {
        "TILE": ROWS,
        "OUTLIERS": 0,
        "SUB": 16,
        "ROUND": ROUNDINGS[walking.dtype],
        "FIT": 0,
        "SYMMETRIC": 0,
        "LARGEST": 0,
        "SCALE": 0,
        "SCATTERED": 0,
    }
    if isinstance(fitting, TwoLevelFitting):
        constants |= _two_level_constants(fitting, walking.keeping)
    elif fitting is not None:
        constants |= {"ROUND": 0, "FIT": FITS[fitting.by], "SYMMETRIC": int(fitting.symmetric)}
        constants |= {"LARGEST": fitting.largest_code, "SCALE": SCALES[fitting.scale_dtype]}
    if walking.group_index is not None:
        constants |= {"FIT": 0, "SCATTERED": 1}
    if fitting is None or walking.group_index is not None or walking.size % 32 == 0:
        constants["SUB"] = 32
    constants |= {"DROPS": 0, "FITTED": 0, "SCORES": 0}
    if dropping is not None:
        constants |= {"DROPS": DROPS[dropping.how], "FITTED": FITTED[dropping.fitted] if constants["FIT"] else 0}
        constants |= {"KEEP": dropping.keep, "OF": dropping.of} if dropping.how == "n of m" else {}
    return constants


def _shared_bytes(constants: dict[str, int]) -> int:
    """Feedback, three numbers for every weight, and the largest of the buffers that take turns."""
    sub, rows = constants["SUB"], constants["TILE"]
    subs = MOST // sub
    turns = [sub * rows, WARPS * rows + 3]
    if constants["FIT"] > 1:
        turns.append(WARPS * (25 if constants["FIT"] == 5 else 18 if constants["SYMMETRIC"] else 9) * rows)
    if constants["SCORES"]:
        turns.append(FIRST_DIGITS)
    grids = 3 * sub * rows if constants["SCATTERED"] else 0
    return 4 * (grids + sub * sub * subs * (subs + 1) // 2 + 3 * MOST * rows + MOST + 4 * rows + max(turns))
