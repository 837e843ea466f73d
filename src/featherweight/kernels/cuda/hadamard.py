"""Signed Hadamard transforms of rows on the GPU, to values or to what the lattice's product reads."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.kernels.cuda import driver
from featherweight.kernels.cuda.lattice_layout import RANKS, SLICE

#: Numbers of the kernels' dtypes.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

#: Shared memory of a block, at most.
MOST_SHARED = 232448

#: Of a multiprocessor, for all its blocks.
SHARED = 233472

#: Rows up to which latency counts more than throughput, and the size from which a cluster then takes one.
FEW_ROWS, LONG_ROW = 16, 12288


@dataclass(frozen=True, eq=False)
class DeviceRotation:
    """`H diag(signs)`, or with `inverted` `diag(signs) Hᵀ`, `H = A ⊗ Sylvester(2^twos) / √size`.

    Attributes:
        size: of a row.
        twos: exponent of Sylvester's part.
        inverted: as above.
        signs: `[size / 8]` uint8, a set bit for −1.
        factor: `A`, or with `inverted` `Aᵀ`, from `encode_factor`; None where there is none.
    """

    size: int
    twos: int
    inverted: bool
    signs: Tensor
    factor: Tensor | None


@dataclass(frozen=True, eq=False)
class DeviceRight:
    """A factor `R [rank, in]` in 4-bit codes.

    Attributes:
        rank, group: its rows; inputs that share a scale.
        codes: from `encode_right`.
        scales: `[rank, groups]` float16.
    """

    rank: int
    group: int
    codes: Tensor
    scales: Tensor


@dataclass(frozen=True, eq=False)
class Rotated:
    """Rotated rows as the lattice's product reads them: integers `X = 256 H + L` of 16 bits in two planes of bytes.

    Attributes:
        planes: `[rows, 2, inputs]` int8, inputs in whole slices; of every 16 the first four, third, second and last four.
        steps: `[rows]` float32: a value is `step · X`.
        projected: `t [rows, rank]` float32, the rank in whole loads; None without a factor.
    """

    planes: Tensor
    steps: Tensor
    projected: Tensor | None


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "input", "signs", "factor", "output", "steps", "right", "right_scales", "projected"
        )),
        *((name, ctypes.c_int) for name in ("rows", "splits", "rank", "padded_rank", "group", "groups")),
        ("scale", ctypes.c_float),
    )  # fmt: skip


def unsupported(factors: tuple[tuple[str, int], ...], twos: int, size: int, whole: bool) -> str:
    """Why a construction cannot be run here; "" if it can. `whole`: one block is the row."""
    if not whole:
        return "rotations of several blocks are not written"
    if len(factors) > 1 or any(kind == "hartley" for kind, _ in factors):
        return "of the factors beside Sylvester's one of ±1 is written"
    if not 4 <= twos <= 15 or size % 16:
        return "Sylvester's part must be 2^4 to 2^15"
    if _shared_bytes(size, twos, 2, 1) > MOST_SHARED:
        return f"rows of {size} do not fit a multiprocessor"
    return ""


def _shared_bytes(size: int, twos: int, planes: int, cluster: int, rank: int = 0) -> int:
    """What a block needs: signs, values in float32, the raw row beside them or in their place, planes of bytes."""
    local, columns = size // cluster, (1 << twos) // cluster
    values, factor = 4 * (local + (local >> 7) * 4 + 8), size >> twos
    raw = planes * -(-factor // 16) * 16 * (columns + 8) * 2 if factor > 1 else 0
    together = max(values, raw) if factor <= 64 else values + raw
    bytes_ = 256 + 2 * -(-size // SLICE) * SLICE
    after = values + 256 + 4 * rank + 2 * local if cluster > 1 else bytes_
    return -(-size // 128) * 16 + max(together, after)


def _cluster(size: int, twos: int, rows: int) -> int:
    """Blocks to a row: eight for few rows that are long enough and can be cut so."""
    can = twos >= 7 and (size // 64) % 16 == 0
    return 8 if can and rows <= FEW_ROWS and size >= LONG_ROW else 1


def rotate(x: Tensor, rotation: DeviceRotation, dtype: torch.dtype, splits: int = 1, overlapped: bool = True) -> Tensor:
    """The rows of `x [rows, size]` rotated, in `dtype`; with `splits`, of the sum of `x [splits, rows, size]` float32."""
    rows = x.numel() // rotation.size // splits
    output = torch.empty(rows, rotation.size, dtype=dtype, device=x.device)
    arguments = _arguments(x, rotation, rows, splits)
    arguments.output = output.data_ptr()
    shape = _rows_shape(rotation)
    if rows > FEW_ROWS and splits == 1 and torch.float32 not in (x.dtype, dtype) and shape is not None:
        _launch_rows(x.dtype, dtype, rotation, shape, arguments, x.device, overlapped)
        return output
    _launch(x.dtype, rotation, {"OUT": DTYPES[dtype], "FOR_PRODUCT": 0}, arguments, 1, x.device, overlapped)
    return output


def rotate_for_product(x: Tensor, rotation: DeviceRotation, right: DeviceRight | None, overlapped: bool = True) -> Rotated:
    """The rows of `x [rows, size]` rotated, for `lattice.multiply_rotated`."""
    rows, slices, device = x.numel() // rotation.size, -(-rotation.size // SLICE), x.device
    padded = 0 if right is None else -(-right.rank // RANKS) * RANKS
    rotated = Rotated(
        torch.empty(rows, 2, slices * SLICE, dtype=torch.int8, device=device),
        torch.empty(rows, dtype=torch.float32, device=device),
        None if right is None else torch.empty(rows, padded, dtype=torch.float32, device=device),
    )
    arguments = _arguments(x, rotation, rows, 1)
    arguments.output, arguments.steps = rotated.planes.data_ptr(), rotated.steps.data_ptr()
    if right is not None and rotated.projected is not None:
        arguments.right, arguments.right_scales = right.codes.data_ptr(), right.scales.data_ptr()
        arguments.projected = rotated.projected.data_ptr()
        arguments.rank, arguments.padded_rank, arguments.group = right.rank, padded, right.group
        arguments.groups = right.scales.shape[1]
    blocks = max(1, min(8, 128 // rows)) if right is not None else 1
    _launch(x.dtype, rotation, {"FOR_PRODUCT": 1, "OUT": 0}, arguments, blocks, device, overlapped)
    return rotated


def _arguments(x: Tensor, rotation: DeviceRotation, rows: int, splits: int) -> _Arguments:
    arguments = _Arguments()
    arguments.input, arguments.signs = x.data_ptr(), rotation.signs.data_ptr()
    arguments.factor = 0 if rotation.factor is None else rotation.factor.data_ptr()
    arguments.rows, arguments.splits, arguments.scale = rows, splits, rotation.size**-0.5
    return arguments


def _rows_shape(rotation: DeviceRotation) -> tuple[int, int, int] | None:
    """Threads of a block, registers of each, and shared bytes of the kernel for many rows; None where it is not written."""
    size, twos = rotation.size, rotation.twos
    factor, columns = size >> twos, 1 << twos
    if factor == 1:
        return (128, {13: 96, 14: 168}.get(twos, 64), 4 * (size + size // 16)) if 11 <= twos <= 14 else None
    threads = 32 * (-(-factor // 16) if factor > 64 else factor // 4)
    shared = (4 * factor + 2 * -(-factor // 16) * 16) * (columns + 8)
    registers = 80 if factor > 64 or (factor <= 32 and twos < 9) else 128 if twos < 10 else 208
    written = factor % 4 == 0 and factor <= 384 and 5 <= twos <= 10 and shared <= MOST_SHARED
    return (threads, registers, shared) if written and threads * registers <= 65536 else None


def _launch_rows(
    dtype: torch.dtype, to: torch.dtype, rotation: DeviceRotation, shape: tuple[int, int, int], arguments: _Arguments,
    device: torch.device, overlapped: bool,
) -> None:  # fmt: skip
    threads, registers, shared = shape
    resident = max(1, min(65536 // registers // threads, SHARED // (shared + 1024)))
    constants = {
        "FACTOR": rotation.size >> rotation.twos, "TWOS": rotation.twos, "IN": DTYPES[dtype], "OUT": DTYPES[to],
        "INVERTED": int(rotation.inverted), "THREADS": threads, "RESIDENT": resident,
    }  # fmt: skip
    function = driver.load("hadamard_rows.cu", "hadamard_rows", driver.constants_of(constants), device)
    blocks = min(arguments.rows, resident * driver.processors(device))
    function.launch((blocks, 1, 1), (threads, 1, 1), shared, [arguments], overlapped=overlapped)


def _launch(
    dtype: torch.dtype, rotation: DeviceRotation, constants: dict[str, int], arguments: _Arguments, blocks: int,
    device: torch.device, overlapped: bool,
) -> None:  # fmt: skip
    rows, size, twos = arguments.rows, rotation.size, rotation.twos
    cluster = _cluster(size, twos, rows)
    few = 512 if constants["FOR_PRODUCT"] and cluster > 1 and arguments.rank else size // cluster // 8
    threads = min(512, max(64, -(-(few if rows <= FEW_ROWS else size // 16) // 32) * 32))
    constants |= {
        "FACTOR": size >> twos, "TWOS": twos, "IN": DTYPES[dtype], "INVERTED": int(rotation.inverted), "THREADS": threads,
        "CLUSTER": cluster,
    }  # fmt: skip
    function = driver.load("hadamard.cu", "hadamard", driver.constants_of(constants), device)
    shared = _shared_bytes(size, twos, 2 if dtype == torch.float32 else 1, cluster, arguments.padded_rank)
    grid = (rows, cluster * max(1, min(blocks, 16 // rows)) if cluster > 1 else blocks, 1)
    function.launch(grid, (threads, 1, 1), shared, [arguments], cluster=cluster, overlapped=overlapped)
