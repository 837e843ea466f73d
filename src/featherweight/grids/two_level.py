"""SpQR's grid: equally spaced levels per row and group, whose scales and zeros are rounded to grids of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.base import GridParameters, Rounding
from featherweight.grids.two_level_search import NEAR, search_codes, search_first_level
from featherweight.grids.uniform import decode_uniform, store_scale

Fit = Literal["minmax", "weighted"]

#: A scale below this is not divided by.
SMALLEST_SCALE = 1e-9

#: A spread below this part of the values is none: one level of the second grid then stands for all of them.
SMALLEST_SPREAD = 2.0**-10


@dataclass(frozen=True)
class Quantized:
    """One number per row and group (the scales, or the zeros) as it is stored and as it comes back.

    Attributes:
        values: what the stored form decodes to, `[rows, groups]` float32.
        codes: `[rows, groups]` uint8; None where the values themselves are stored.
        grids: (scale, zero) of every `second_group_size` rows, `[⌈rows / size⌉, groups, 2]` float16; None without them.
    """

    values: Tensor
    codes: Tensor | None = None
    grids: Tensor | None = None

    @staticmethod
    def pick(candidates: list[Quantized], index: Tensor) -> Quantized:
        """Row by row the candidate that `index [rows, 1]` says; all lie on the same second grids."""
        values = torch.cat([each.values for each in candidates], 1).gather(1, index)
        codes = [each.codes for each in candidates if each.codes is not None]
        return Quantized(values, torch.cat(codes, 1).gather(1, index) if codes else None, candidates[0].grids)

    @staticmethod
    def join(groups: list[Quantized]) -> Quantized:
        """Groups side by side."""

        def beside(parts: list[Tensor | None]) -> Tensor | None:
            there = [part for part in parts if part is not None]
            return torch.cat(there, 1) if there else None

        values = torch.cat([group.values for group in groups], 1)
        return Quantized(values, beside([group.codes for group in groups]), beside([group.grids for group in groups]))


@dataclass(frozen=True)
class TwoLevelParameters(GridParameters):
    """A fitted grid with the stored form of its scales and zeros.

    Attributes:
        scales: of this group, `[rows, 1]`.
        zeros: likewise; None on a symmetric grid.
    """

    scales: Quantized
    zeros: Quantized | None


def decode_second_level(codes: Tensor, grids: Tensor, size: int) -> Tensor:
    """`v = s₂ (c − z₂)` in float32, for solver, file and reload alike.

    Args:
        codes: `[rows, groups]`.
        grids: `[⌈rows / size⌉, groups, 2]` float16.
        size: consecutive rows that share a second grid.
    """
    own = grids.to(torch.float32).repeat_interleave(size, 0)[: len(codes)]
    return decode_uniform(codes.to(torch.float32), own[..., 0], own[..., 1])


@dataclass(frozen=True)
class TwoLevelGrid:
    """`q = clamp(round(w/s + z), 0, 2^bits − 1)`, `ŵ = s (q − z)`; `s` and `z` rounded over `second_group_size` rows.

    Per row and group `s = (max w − min w) / (2^bits − 1)` and `z = −min w / s`, a real number: 0 need not be a level. The
    scales of `second_group_size` consecutive rows are then rounded to `2^scale_bits` levels between their extremes, the
    zeros to `2^zero_bits`; the two numbers of each such second grid are float16 before they are used. The last rows
    form a smaller second group.

    Source: SpQR (Dettmers et al. 2023, arXiv:2306.03078, section 4.1) and its code. There values that are all equal get the
    range (−1, 1) on both levels, far off the values; here the range is widened to hold 0, so that they come back. A row of
    zeros takes the mean scale and zero of its second group instead of stretching its range.

    Attributes:
        bits: of a code, 2 to 8.
        scale_bits: of a scale's code, 1 to 8; None stores scales as float16.
        zero_bits: of a zero's code, 1 to 8; None stores zeros as float16.
        second_group_size: consecutive rows that share a second grid.
        round_zero: widen the range to hold 0 and round `z` to an integer. It is then stored in `bits` bits, or on a second
            grid where `zero_bits < bits` (as the authors do).
        symmetric: range `[−a, a]`, `z` fixed to `2^(bits−1)` and not stored.
        zero_symmetric: zeros lie on second grids from `−a` to `a` instead of between their extremes.
        fit_by: "minmax", as above, is the authors'. "weighted" is ours: it minimises `Σ importance · (ŵ − w)²` over ranges
            inside the extremes, and then over the pairs of stored scale and stored zero near the best of each.

    Raises:
        FeatherweightError: a setting outside these ranges.
    """

    bits: int
    scale_bits: int | None = 3
    zero_bits: int | None = 3
    second_group_size: int = 16
    round_zero: bool = False
    symmetric: bool = False
    zero_symmetric: bool = False
    fit_by: Fit = "minmax"

    def __post_init__(self) -> None:
        """Refuse settings outside their ranges."""
        if self.fit_by not in get_args(Fit):
            raise FeatherweightError(
                "unknown way to fit a two-level grid", found=self.fit_by, expected=", ".join(get_args(Fit)), fix="use minmax"
            )
        for name, value, least in (
            ("scale_bits", self.scale_bits, 1),
            ("zero_bits", self.zero_bits, 1),
            ("bits", self.bits, 2),
        ):
            if not (value is None and least == 1) and (type(value) is not int or not least <= value <= 8):
                expected = f"{least} to 8" + (", or null for float16" if least == 1 else "")
                raise FeatherweightError(
                    f"{name} outside the two-level grids", found=value, expected=expected, fix=f"use {name}: 3"
                )
        if type(self.second_group_size) is not int or self.second_group_size < 1:
            raise FeatherweightError(
                "second_group_size is a number of rows", found=self.second_group_size, expected="1 or more", fix="use 16"
            )

    @property
    def vector_size(self) -> int:
        """Every value has its own code."""
        return 1

    @property
    def rounding(self) -> Rounding:
        """Zeros are real numbers."""
        return "real"

    @property
    def largest_code(self) -> int:
        """`2^bits − 1`; the smallest is 0."""
        return 2**self.bits - 1

    @property
    def integer_zeros(self) -> bool:
        """Whether zeros are stored as integers of `bits` bits."""
        return self.round_zero and not self.symmetric and (self.zero_bits is None or self.zero_bits >= self.bits)

    def fit(self, values: Tensor, importance: Tensor | None = None) -> TwoLevelParameters:
        """Scales and zeros of the rows of `values [rows, width]`, the second level included.

        `importance [width]`, non-negative, is used by `fit_by="weighted"` only.
        """
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        searched = self.fit_by == "weighted"
        first = search_first_level(self, values, importance) if searched else self.between(low, high)
        scale, zero = self._fill_empty((low == 0) & (high == 0), first)
        scales, zeros = self._store(scale, self.scale_bits), self._store_zero(zero)
        if searched:
            near = self._near(scales, self.scale_bits), self._near(zeros, self.bits if self.integer_zeros else self.zero_bits)
            chosen = search_codes(self, values, importance, *near)
            scales, zeros = (Quantized.pick(*each) for each in zip(near, chosen, strict=True))
        return TwoLevelParameters(scales.values, zeros.values, scales, None if self.symmetric else zeros)

    def between(self, low: Tensor, high: Tensor) -> GridParameters:
        """The first level alone: the grid that spans `[low, high]`, `[rows, 1]` each, nothing rounded but `z` if asked for."""
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        hold_zero = (low == high) | self.round_zero
        low, high = torch.where(hold_zero, low.clamp(max=0.0), low), torch.where(hold_zero, high.clamp(min=0.0), high)
        scale = ((high - low) / self.largest_code).clamp(min=SMALLEST_SCALE)
        if self.symmetric:
            return GridParameters(scale, torch.full_like(scale, (self.largest_code + 1) / 2))
        zero = -low / scale
        return GridParameters(scale, zero.round().clamp(0, self.largest_code) if self.round_zero else zero)

    def encode(self, values: Tensor, parameters: GridParameters) -> Tensor:
        """Codes `0 … 2^bits − 1` of the nearest levels, integers held in float32; shapes broadcast."""
        codes = torch.round(values / parameters.scale.clamp(min=SMALLEST_SCALE) + parameters.zero)
        return codes.clamp_(0, self.largest_code)

    def decode(self, codes: Tensor, parameters: GridParameters) -> Tensor:
        """The values of `codes`, float32; shapes broadcast."""
        return decode_uniform(codes, parameters.scale, parameters.zero)

    def _fill_empty(self, empty: Tensor, fitted: GridParameters) -> tuple[Tensor, Tensor]:
        """Rows of zeros take the mean of their second group, rounded where zeros are integers."""
        if not bool(empty.any()):
            return fitted.scale, fitted.zero
        weight = self._blocks((~empty).float())
        count = weight.sum(1, keepdim=True).clamp(min=1.0)

        def filled(values: Tensor) -> Tensor:
            mean = ((self._blocks(values) * weight).sum(1, keepdim=True) / count).expand_as(weight).reshape(-1, 1)
            return torch.where(empty, mean[: len(values)], values)

        zero = filled(fitted.zero)
        return filled(fitted.scale), zero.round() if self.round_zero else zero

    def _blocks(self, values: Tensor) -> Tensor:
        """`[rows, 1]` to `[⌈rows / size⌉, size]`, the last one filled up with its last row."""
        fill = -len(values) % self.second_group_size
        return torch.cat([values, values[-1:].expand(fill, 1)]).view(-1, self.second_group_size)

    def _store_zero(self, zero: Tensor) -> Quantized:
        """`[rows, 1]`, as it is stored; the fixed zero of a symmetric grid is not."""
        if self.symmetric:
            return Quantized(zero)
        return (
            Quantized(zero, zero.to(torch.uint8))
            if self.integer_zeros
            else self._store(zero, self.zero_bits, self.zero_symmetric)
        )

    def _near(self, stored: Quantized, bits: int | None) -> list[Quantized]:
        """The stored number itself and those of the codes next to it, `NEAR` on either side."""
        if stored.codes is None or bits is None:
            return [stored]
        steps = range(-NEAR, NEAR + 1)
        moved = [stored.codes.to(torch.int16).add(step).clamp_(0, 2**bits - 1).to(torch.uint8) for step in steps]
        if stored.grids is None:
            return [Quantized(codes.to(torch.float32), codes) for codes in moved]
        size = self.second_group_size
        return [Quantized(decode_second_level(codes, stored.grids, size), codes, stored.grids) for codes in moved]

    def _store(self, values: Tensor, bits: int | None, symmetric: bool = False) -> Quantized:
        """`values [rows, 1]` as they are stored, at `bits` bits or in float16."""
        if bits is None:
            limit = torch.finfo(torch.float16).max
            return Quantized(values.clamp(-limit, limit).to(torch.float16).to(torch.float32))
        blocks = self._blocks(values)
        low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
        flat = high - low <= SMALLEST_SPREAD * torch.maximum(high, -low)
        low, high = torch.where(flat, low.clamp(max=0.0), low), torch.where(flat, high.clamp(min=0.0), high)
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        scale = store_scale((high - low) / (2**bits - 1), torch.float16)
        limit = torch.finfo(torch.float16).max
        zero = torch.full_like(scale, 2.0 ** (bits - 1)) if symmetric else (-low / scale).clamp(-limit, limit)
        zero = zero.to(torch.float16).to(torch.float32)
        codes = torch.round(blocks / scale + zero).clamp_(0, 2**bits - 1).view(-1, 1)[: len(values)].to(torch.uint8)
        grids = torch.stack([scale, zero], -1).to(torch.float16)
        return Quantized(decode_second_level(codes, grids, self.second_group_size), codes, grids)
