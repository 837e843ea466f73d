"""Weights in the chunks that CUDA kernels stream: from what is stored, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from featherweight.kernels.bits import pack, unpack
from featherweight.kernels.cuda import bitmap, bitmap_codes, two_level, two_of_four
from featherweight.kernels.cuda.sparse_list import SparseParts
from featherweight.kernels.cuda.stream import ACTIVATIONS, MOST_TOKENS, Chunked, multiply
from featherweight.kernels.cuda.stream_values import multiply_many
from featherweight.kernels.cuda.two_level import TwoLevelParts
from featherweight.packed.dense import Dense
from featherweight.packed.dtypes import dtype_from
from featherweight.packed.integer import Integer
from featherweight.packed.masked import PREFIX, Masked
from featherweight.packed.sparse_rows import VALUE_DTYPES, SparseRows
from featherweight.packed.sum import Sum
from featherweight.packed.two_level import TwoLevel

#: Tokens up to which reading the chunks once for every sixteen of them is faster than making their values dense once.
MOST_STREAMED = 128


class PreparedChunks:
    """A weight in chunks, in the place of its stored tensors.

    Args:
        chunked: what lies on the device.
        kernel: source of the storage's kernels, and what that wants fixed.
        rebuild: the packed weight's stored tensors, bit for bit.
        dtypes: of activations.
    """

    def __init__(
        self,
        chunked: Chunked,
        kernel: tuple[str, dict[str, int]],
        rebuild: Callable[[], dict[str, Tensor]],
        dtypes: tuple[torch.dtype, ...] = tuple(ACTIVATIONS),
    ) -> None:
        self.chunked, self._kernel, self._rebuild, self._dtypes = chunked, kernel, rebuild, dtypes

    def runs(self, x: Tensor) -> bool:
        """Whether `x` can be multiplied: in a dtype of the kernel's, no gradients wanted."""
        return x.numel() > 0 and x.dtype in self._dtypes and not (torch.is_grad_enabled() and x.requires_grad)

    def stored(self) -> dict[str, Tensor]:
        """The stored tensors of the packed weight, rebuilt."""
        return self._rebuild()

    def tensors(self) -> dict[str, Tensor]:
        """What lies on the device in their place."""
        return {name: value for name, value in vars(self.chunked).items() if isinstance(value, Tensor)}

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x [..., in]` to `x · Wᵀ + bias`, `[..., out]`, in the dtype of `x`."""
        flat = x.reshape(-1, x.shape[-1])
        if flat.shape[1] % 8:
            flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8))
        if flat.stride(-1) != 1 or flat.stride(0) % 8 or flat.data_ptr() % 16:
            flat = flat.contiguous().clone()
        bias = None if bias is None else bias.to(x.dtype)
        y = torch.empty(len(flat), self.chunked.rows, dtype=x.dtype, device=x.device)
        if len(flat) > MOST_STREAMED:
            multiply_many(*self._kernel, flat, self.chunked, bias, y)
        else:
            for first in range(0, len(flat), MOST_TOKENS):
                part = slice(first, first + MOST_TOKENS)
                multiply(*self._kernel, flat[part], self.chunked, bias, y[part])
        return y.view(*x.shape[:-1], self.chunked.rows)


def prepare_two_level(weight: TwoLevel | Sum) -> PreparedChunks:
    """SpQR's weight, with or without its sparse term; the kernel for one token is compiled, as a proof.

    Raises:
        FeatherweightError: the compiler or the driver refuses.
    """
    dense, *terms = weight.terms if isinstance(weight, Sum) else (weight,)
    assert isinstance(dense, TwoLevel)
    sparse = next((term for term in terms if isinstance(term, SparseRows)), None)
    entries = None if sparse is None else SparseParts(*sparse.positions(), sparse.values)
    encoded = two_level.encode(_parts_of(dense), dense.grid.bits, two_level.second_bits(dense.description()), entries)
    index = dense.parts.get("group_index")
    settings = None if sparse is None else sparse.description()

    def rebuild() -> dict[str, Tensor]:
        parts, entries = two_level.decode(encoded, None if index is None else dense.index())
        found = TwoLevel(dense.inputs, dense.group_size, dense.grid, _stored_of(dense, parts, index))
        if settings is None or entries is None:
            return found.tensors()
        values = entries.values.to(VALUE_DTYPES[settings["value_bits"]])
        rows, inputs = settings["shape"]
        return Sum((found, SparseRows.from_entries((rows, inputs), entries.rows, entries.columns, values))).tensors()

    return _proven(PreparedChunks(encoded.chunked, two_level.kernel(encoded), rebuild))


def prepare_two_of_four(weight: Masked) -> PreparedChunks:
    """Two of every four weights, as 4-bit codes or as values; the kernel for one token is compiled, as a proof.

    Raises:
        FeatherweightError: the compiler or the driver refuses.
    """
    described = weight.description()
    inner, (rows, inputs) = described["values"], described["shape"]
    stored = {name.removeprefix(PREFIX): tensor for name, tensor in weight.tensors().items()}
    places = weight.support.view(rows, -1, 4).nonzero()[:, 2].view(rows, inputs // 2).to(torch.uint8)
    if inner["kind"] == "dense":
        encoded = two_of_four.encode_values(stored["values"], places)
    else:
        zeros = None if inner["symmetric"] else unpack(stored["zeros"], 4, inner["groups"])
        codes = unpack(stored["codes"], 4, inputs // 2)
        encoded = two_of_four.encode_codes(codes, places, stored["scales"], zeros, two_of_four.group_of(inner))

    def rebuild() -> dict[str, Tensor]:
        return _masked_tensors(described, *two_of_four.decode(encoded))

    dtypes = (encoded.scale_dtype,) if encoded.bits == 16 else tuple(ACTIVATIONS)
    return _proven(PreparedChunks(encoded.chunked, two_of_four.kernel(encoded), rebuild, dtypes))


def prepare_bitmap(weight: Masked) -> PreparedChunks:
    """Values in 16 bits with any mask; the kernel for one token is compiled, as a proof.

    Raises:
        FeatherweightError: the compiler or the driver refuses.
    """
    described, mask = weight.description(), weight.support
    encoded = bitmap.encode(weight.dequantize(dtype_from(described["values"]["dtype"])), mask)

    def rebuild() -> dict[str, Tensor]:
        values, mask = bitmap.decode(encoded)
        return Masked.of(Dense(values), mask, described).tensors()

    return _proven(PreparedChunks(encoded.chunked, bitmap.kernel(encoded), rebuild, (encoded.dtype,)))


def prepare_bitmap_codes(weight: Masked) -> PreparedChunks:
    """4-bit codes with any mask; the kernel for one token is compiled, as a proof.

    Raises:
        FeatherweightError: the compiler or the driver refuses.
    """
    described, leaf = weight.description(), weight.values
    assert isinstance(leaf, Integer)
    inner, inputs = described["values"], leaf.inputs
    zeros = None if leaf.symmetric else leaf.unpacked_zeros()
    codes = unpack(leaf.codes, leaf.bits, inputs)
    encoded = bitmap_codes.encode(codes, weight.support, leaf.scales, zeros, two_of_four.group_of(inner))

    def rebuild() -> dict[str, Tensor]:
        codes, mask, numbers = bitmap_codes.decode(encoded)
        scales, *zeros = _without_repeats(numbers, inner)
        found = Integer.from_codes(codes, scales, zeros[0] if zeros else None, inner["bits"], inner["group_size"])
        return Masked.of(found, mask, described).tensors()

    return _proven(PreparedChunks(encoded.chunked, bitmap_codes.kernel(encoded), rebuild))


def _proven(prepared: PreparedChunks) -> PreparedChunks:
    device = prepared.chunked.chunks.device
    prepared(torch.zeros(1, prepared.chunked.inputs, dtype=prepared._dtypes[0], device=device))
    return prepared


def _parts_of(weight: TwoLevel) -> TwoLevelParts:
    """Unpacked; zeros that are not coded, or are integers, on a grid of step 1."""
    grid, stored, (rows, _) = weight.grid, weight.parts, weight.shape

    def second(name: str, bits: int | None) -> tuple[Tensor, Tensor]:
        assert bits is not None
        grids = stored[f"{name}_grids"].to(torch.float32).repeat_interleave(grid.second_group_size, 0)[:rows]
        return unpack(stored[f"{name}_codes"], bits, weight.groups), grids

    scale_codes, scale_grids = second("scale", grid.scale_bits)
    if grid.symmetric or grid.integer_zeros:
        middle = torch.full_like(scale_codes, 2 ** (grid.bits - 1))
        zero_codes = middle if grid.symmetric else unpack(stored["zero_codes"], grid.bits, weight.groups)
        zero_grids = torch.tensor([1.0, 0.0], device=scale_grids.device).expand_as(scale_grids)
    else:
        zero_codes, zero_grids = second("zero", grid.zero_bits)
    codes = unpack(stored["codes"], grid.bits, weight.inputs)
    return TwoLevelParts(codes, scale_codes, zero_codes, scale_grids, zero_grids, weight.index())


def _stored_of(weight: TwoLevel, parts: TwoLevelParts, index: Tensor | None) -> dict[str, Tensor]:
    """The tensors that `weight` stored."""
    grid = weight.grid
    step = grid.second_group_size
    stored = {"codes": pack(parts.codes, grid.bits)}
    assert grid.scale_bits is not None
    stored["scale_codes"] = pack(parts.scale_codes, grid.scale_bits)
    stored["scale_grids"] = parts.scale_grids[::step].to(torch.float16).contiguous()
    if grid.integer_zeros:
        stored["zero_codes"] = pack(parts.zero_codes, grid.bits)
    elif not grid.symmetric:
        assert grid.zero_bits is not None
        stored["zero_codes"] = pack(parts.zero_codes, grid.zero_bits)
        stored["zero_grids"] = parts.zero_grids[::step].to(torch.float16).contiguous()
    return stored if index is None else stored | {"group_index": index}


def _masked_tensors(described: dict[str, Any], kept: Tensor, places: Tensor, numbers: list[Tensor]) -> dict[str, Tensor]:
    """The tensors of a weight so described."""
    inner, (rows, inputs) = described["values"], described["shape"]
    mask = torch.zeros(rows, inputs // 4, 4, dtype=torch.bool, device=kept.device)
    mask.scatter_(2, places.long().view(rows, -1, 2), True)
    stored = {f"{PREFIX}values": kept} if inner["kind"] == "dense" else {f"{PREFIX}codes": pack(kept, 4)}
    if inner["kind"] != "dense":
        scales, *zeros = _without_repeats(numbers, inner)
        stored[f"{PREFIX}scales"] = scales
        if zeros:
            stored[f"{PREFIX}zeros"] = pack(zeros[0], 4)
    return {**stored, "mask": Masked.written_mask(mask.view(rows, inputs), described)}


def _without_repeats(numbers: list[Tensor], inner: Mapping[str, Any]) -> list[Tensor]:
    """Scales and zero points of so described codes, without those that a large group has in every chunk."""
    apart = max(1, two_of_four.group_of(inner) // two_of_four.GROUPS[-1])
    return [each[:, ::apart][:, : inner["groups"]].contiguous() for each in numbers]
