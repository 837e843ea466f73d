"""One token's attention over coded keys and values in one CUDA launch, two where the query is sketched first."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.cache_part import CachePart
from featherweight.kernels.cuda import driver
from featherweight.kernels.cuda.cache_layout import (
    HEADS,
    NUMBERS,
    STAGE,
    Arguments,
    Rows,
    Side,
    identity,
    key_side,
    note_failure,
    qjl_table,
    rotated_tables,
    row_sums,
    value_side,
)
from featherweight.kernels.reference.cache_attention import cache_attention as reference

#: Floats of a head's part beside its sums; threads that prepare a query, and columns of the projection that they take.
_STATE, _THREADS, _COLUMNS = 4, 128, 32

#: Parts of one head at most; small ones of a few heads; stages that a program's start and end take the time of.
MOST_PARTS, MOST_SMALL, START = 64, 16, 4


class Launch(Protocol):
    """Starts a kernel: the driver's, or an emulation's."""

    def __call__(
        self, source: str, name: str, constants: Mapping[str, int], grid: tuple[int, int, int], threads: int, shared: int,
        arguments: Sequence[Any], device: torch.device,
    ) -> None:  # fmt: skip
        """Kernel `name` of a source file compiled with `constants`; arguments as the kernel takes them."""


@dataclass(frozen=True)
class Shape:
    """How the work is cut.

    Attributes:
        warps: of a program.
        depth: stages of a warp in shared memory.
        resident: programs that a multiprocessor's registers must hold at once.
    """

    warps: int = 4
    depth: int = 3
    resident: int = 4


@dataclass(frozen=True)
class Lengths:
    """How many tokens there are: on the device, for a graph that is replayed while they grow, or as numbers.

    Attributes:
        device: int32 `[3]`: coded keys, coded values, tokens; None for the numbers of the parts.
        most: tokens at most, by which the work is cut.
        rings: whether exact tokens lie in rings, token t at place `t % size`, a power of two.
    """

    device: Tensor | None = None
    most: int = 0
    rings: bool = False


def launch_on_device(
    source: str, name: str, constants: Mapping[str, int], grid: tuple[int, int, int], threads: int, shared: int,
    arguments: Sequence[Any], device: torch.device,
) -> None:  # fmt: skip
    """See `Launch`; on torch's current stream."""
    function = driver.load(source, name, driver.constants_of(constants), device)
    function.launch(grid, (threads, 1, 1), shared, arguments)


def cache_attention(query: Tensor, keys: CachePart, values: CachePart, mask: Tensor | None, scaling: float) -> Tensor:
    """As `featherweight.kernels.reference.cache_attention`, for one query; sums in float32.

    What lies in memory as the kernel cannot read it goes to the reference, and all from then on if the kernel does not compile.
    """
    if readable(query, keys, values, mask):
        try:
            return attend(query, keys, values, mask, scaling)
        except FeatherweightError as problem:
            note_failure(keys.settings, values.settings, str(problem).splitlines()[0])
    return reference(query, keys, values, mask, scaling)


def attend(
    query: Tensor, keys: CachePart, values: CachePart, mask: Tensor | None, scaling: float, lengths: Lengths | None = None,
    shape: Shape | None = None, launch: Launch = launch_on_device,
) -> Tensor:  # fmt: skip
    """As `cache_attention`, with the device's lengths, the shape of the work and the launcher given."""
    batch, heads, _, head_dim = query.shape
    lengths = lengths or Lengths()
    key_heads = keys.exact.shape[1]
    group = heads // key_heads
    blocks, sides = -(-group // HEADS), (key_side(keys, head_dim), value_side(values, head_dim))
    constants = {"NUMBER": NUMBERS[query.dtype], "HEAD_DIM": head_dim, **sides[0].constants}
    owners = batch * key_heads * blocks
    stage = sum(-(-side.stage_bytes // 16) * 16 for side in sides)
    shape, parts, apart = _cut(max(lengths.most, values.coded), owners, shape, stage, sides[0], query.device)
    out = torch.empty(batch, heads, 1, head_dim, dtype=query.dtype, device=query.device)
    partial = torch.empty(owners * (parts + 1) * HEADS * (head_dim + _STATE), dtype=torch.float32, device=query.device)
    tickets = _tickets(2 * owners, query.device)
    hidden = None if mask is None else mask[:, 0, -1].expand(batch, -1).contiguous().view(torch.uint8)
    rings = [part.exact.shape[2] - 1 if lengths.rings else 0 for part in (keys, values)]
    given = Arguments(
        query=Rows.of(query), exact_keys=Rows.of(keys.exact), exact_values=Rows.of(values.exact),
        first_keys=Rows.of(keys.codes.get("first")), first_values=Rows.of(values.codes.get("first")),
        out=out.data_ptr(), partial=partial.data_ptr(), tickets=tickets.data_ptr(),
        mask=0 if hidden is None else hidden.data_ptr(), mask_stride=0 if hidden is None else hidden.shape[1],
        lengths=0 if lengths.device is None else lengths.device.data_ptr(), coded_keys=keys.coded, coded_values=values.coded,
        tokens=keys.coded + keys.exact.shape[2], first=_first(keys), group=group, key_ring=rings[0], value_ring=rings[1], apart=apart,
        scaling=scaling * math.log2(math.e),
    )  # fmt: skip
    for side, part, target in zip(sides, (keys, values), (given.keys, given.values), strict=True):
        for index, name in enumerate(side.names):
            target[index] = Rows.of(part.codes[name])
    if sides[1].constants["VALUES"] == 2:
        tables = rotated_tables(values.constants, query.dtype)
        given.levels, given.rotation = tables.values.data_ptr(), tables.back.data_ptr()
    prepared = _prepare(given, keys, sides[0], constants, owners, batch, launch, query.device)
    constants |= {
        **sides[1].constants, "WARPS": shape.warps, "DEPTH": shape.depth, "RESIDENT": shape.resident, "MASKED": int(mask is not None),
    }  # fmt: skip
    states = 4 * HEADS * (head_dim + _STATE + 8)
    shared = 4 * HEADS * head_dim + max(
        shape.warps * max(shape.depth * stage, states), 4 * HEADS * (2 * (shape.warps // HEADS) + 1) * (head_dim + _STATE)
    )
    grid = (parts, key_heads * blocks, batch)
    launch("cache_attention.cu", "cache_attention", constants, grid, 32 * shape.warps, shared, (given,), query.device)
    del prepared, partial, hidden, tickets  # held until here
    return out


def _prepare(
    given: Arguments, keys: CachePart, side: Side, constants: Mapping[str, int], owners: int, batch: int, launch: Launch,
    device: torch.device,
) -> Tensor | None:  # fmt: skip
    """Launch what the keys' codec wants of the query, if anything."""
    if not side.prepared_bytes:
        return None
    prepared = torch.empty(owners * side.prepared_bytes, dtype=torch.uint8, device=device)
    if "SKETCH" in side.constants:
        projection = keys.constants["projection"]
        constant, length = unbiased(keys.settings, len(projection)), side.constants["SKETCH"]
        if side.constants["OUTLIERS"]:
            given.table = qjl_table(projection, side.constants["OUTLIER_SKETCH"], keys.exact.dtype).data_ptr()
        constant, reach = constant / length, 6.0
    elif side.constants["KEYS"] == 3:
        projection, tables = keys.constants["rotation"], rotated_tables(keys.constants, keys.exact.dtype)
        given.table, constant, reach = tables.keys.data_ptr(), tables.unit / 2, 1.0
    else:
        projection, constant, reach = identity(constants["HEAD_DIM"], device), 0.5, 1.0
    given.prepared = prepared.data_ptr()
    pointers = [ctypes.c_void_p(each.data_ptr()) for each in (projection, row_sums(projection), prepared)]
    shared, grid = 4 * HEADS * (constants["HEAD_DIM"] + _THREADS), (projection.shape[1] // _COLUMNS, owners // batch, batch)
    numbers = (ctypes.c_float(reach), ctypes.c_float(constant))
    launch("cache_query.cu", "cache_query", constants, grid, _THREADS, shared, (given, *pointers, *numbers), device)
    return prepared


def unbiased(settings: Mapping[str, Any], head_dim: int) -> float:
    """`c` of a QJL sketch; see `QJL.unbiased`."""
    if settings["projection"] == "gaussian" or settings["constant"] == "gaussian":
        return math.sqrt(math.pi / 2)
    return math.exp(0.5 * math.log(math.pi / head_dim) + math.lgamma((head_dim + 1) / 2) - math.lgamma(head_dim / 2))


def _cut(coded: int, owners: int, shape: Shape | None, shared: int, side: Side, device: torch.device) -> tuple[Shape, int, int]:
    """The shape of the work, into how many parts a head's tokens fall, and whether (1) exact tokens are a part apart.

    Few heads get one wave of programs, large ones where there are many tokens, as parts have to be added up. Many heads get small
    ones, and as many parts as fill the waves best; there a part for exact tokens alone would idle.

    Args:
        shared: bytes of shared memory for each warp's stage.
        side: of the keys.
    """
    processors, memory = 4, 227 << 10
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        processors, memory = found.multi_processor_count, found.shared_memory_per_multiprocessor
    few = 2 * processors >= 16 * owners
    if shape is None:
        shape = _shape(side, few and coded > 2 * STAGE * 4 * MOST_SMALL)
    useful = max(1, -(-coded // (2 * STAGE * shape.warps)))
    room = processors * max(1, min(shape.resident, memory // (shape.warps * shape.depth * shared + 4096)))
    if few:
        return shape, 1 + max(1, min(room // owners - 1, useful)), 1
    stages = coded / STAGE / shape.warps

    def cost(parts: int) -> float:
        return -(-owners * parts // room) * (stages / parts + START)

    return shape, min(range(1, min(useful, MOST_PARTS) + 1), key=cost), 0


def _shape(side: Side, large: bool) -> Shape:
    """Outliers keep their rows of S in registers, and in what shared memory leaves of the first-level cache."""
    if side.constants.get("OUTLIERS"):
        return Shape(8, 2, 1) if side.constants["SKETCH"] > 256 else Shape(4, 2, 3)
    if side.constants.get("SKETCH", 0) > 256:
        return Shape(12, 3, 1) if large else Shape(4, 3, 3)
    return Shape(8, 3, 2) if large else Shape(4, 3, 4)


def _first(part: CachePart) -> int:
    first = part.codes.get("first")
    return 0 if first is None else first.shape[2]


def readable(query: Tensor, keys: CachePart, values: CachePart, mask: Tensor | None) -> bool:
    """Whether what the kernel reads lies as it wants it: entries next to each other, everything on 16 bytes."""
    tensors = [query, keys.exact, values.exact, *keys.codes.values(), *values.codes.values()]
    aligned = all(
        tensor.data_ptr() % 16 == 0 and all(stride * tensor.itemsize % 16 == 0 for stride in tensor.stride()[:2])
        and tensor[0, 0].is_contiguous()
        for tensor in tensors if tensor.numel()
    )  # fmt: skip
    seen = mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1)
    return aligned and seen and values.coded <= keys.coded


#: Words of a device's tickets; those of a stream.
_TICKETS, _SOME = 1 << 18, 1 << 12
_HELD: dict[torch.device, Tensor] = {}
_PLACES: dict[tuple[torch.device, int], Tensor] = {}


def _tickets(count: int, device: torch.device) -> Tensor:
    """Zeros, which every launch leaves as zeros. A stream has its own, and so has every launch that is recorded in a graph."""
    if device.type != "cuda" or count > _SOME:
        return torch.zeros(count, dtype=torch.int32, device=device)
    if device not in _HELD:
        _HELD[device] = torch.zeros(_TICKETS, dtype=torch.int32, device=device)
    held, used = _HELD[device], _PLACES.setdefault((device, 0), torch.zeros(1, dtype=torch.int64))
    recorded = torch.cuda.is_current_stream_capturing()
    place = (device, -1 - torch.cuda.current_stream(device).cuda_stream)
    if not recorded and place in _PLACES:
        return _PLACES[place]
    start, size = int(used), count if recorded else _SOME
    if start + size > _TICKETS:
        start = 0
    used.fill_(start + size)
    if recorded:
        return held[start : start + size]
    return _PLACES.setdefault(place, held[start : start + size])
