"""Rotated tokens on the best levels for what a rotation makes of any vector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.e8 import BEST_RMS
from featherweight.grids.e8_codebook import SHIFT, SIZE, codebook, nearest_codes
from featherweight.grids.uniform import store_scale
from featherweight.kernels.bits import pack_across, packed_width
from featherweight.kernels.reference.rotated import rotated_decode, rotated_levels
from featherweight.kernels.registry import choose
from featherweight.kv_cache.codec import CacheCodec, Codes, Constants
from featherweight.kv_cache.integer import check_chunks
from featherweight.kv_cache.rotation import hadamard, orthogonal


@dataclass(frozen=True)
class Rotated(CacheCodec):
    """`x̂ = s ⊙ (g R c) + μ`: a random rotation R makes all coordinates alike, so one table of levels `c` serves them all.

    The levels are Lloyd and Max's for a coordinate of a random direction. The gain `g` gives the coded residual the length of
    the exact one: of the corrections that cost no more (least squares, unbiased products) it disturbs attention least. With a
    `group_size` the mean μ of every channel over its group of tokens is stored and taken away first: keys have large ones. With
    `balance` channels are divided by s, the root of their standard deviation in the group, too.

    TurboQuant has neither mean nor balance, stores the exact norm, and may spend one bit on a QJL sketch of the residual.

    Attributes:
        bits: of a code, 1 to 4.
        lattice: eight coordinates share a codeword of the E8 lattice instead, with a fifth less square error; 2 bits only.
        group_size: tokens that share means; None for no means, every token by itself (values).
        balance: whether channels are evened out within a group.
        window: newest tokens that stay exact. It slides without groups; with them tokens settle `window` at a time, so fewer
            are exact, and it is a multiple of `group_size`.

    Raises:
        FeatherweightError: a setting outside these ranges.
    """

    name: ClassVar[str] = "rotated"
    summary: ClassVar[str] = "a random rotation, then the best levels for a normal coordinate; keys around their channel means"
    source: ClassVar[str] = "ours, after TurboQuant, Zandieh et al. 2025, arXiv:2504.19874, algorithm 1"

    bits: int = 3
    lattice: bool = False
    group_size: int | None = None
    balance: bool = False
    window: int = 128

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.bits not in range(1, 5):
            raise FeatherweightError("rotated cannot store these bits", found=self.bits, expected="1 to 4", fix="use bits: 3")
        if self.lattice and self.bits != 2:
            raise FeatherweightError("the lattice has 2 bits a value", found=self.bits, expected="2", fix="use lattice: false")
        if self.window < 0 or (self.group_size is not None and self.group_size < 1):
            raise FeatherweightError(
                "a group and a window cannot be so small", found=f"group_size: {self.group_size}, window: {self.window}",
                expected="group_size 1 or more, window 0 or more",
            )  # fmt: skip
        if self.group_size is not None:
            check_chunks(self.window, self.group_size)
        elif self.balance:
            raise FeatherweightError("channels are balanced within a group", found="no group_size", fix="use group_size: 128")

    @property
    def group(self) -> int:
        """Tokens that share means."""
        return self.group_size or 1

    def settled(self, total: int) -> int:
        """All but the newest `window`; with groups whole windows."""
        return max(0, total - self.window) if self.group_size is None else total - total % self.window

    def check(self, head_dim: int) -> None:
        """Codes of a token fill whole bytes at any number of bits."""
        if head_dim % 8:
            raise FeatherweightError("rotated needs heads of eights", found=f"head_dim {head_dim}", expected="a multiple of 8")

    def constants(self, head_dim: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`R [head_dim, head_dim]`, a signed Hadamard where there is one, and what `rotated_levels` looks up."""
        power = head_dim & (head_dim - 1) == 0
        rotation = hadamard(head_dim, generator).T if power else orthogonal(head_dim, generator)
        tables = lattice_tables() if self.lattice else {"levels": torch.tensor(best_levels(self.bits, head_dim))}
        return {"rotation": rotation.contiguous(), **tables}

    def layout(self, head_dim: int, dtype: torch.dtype) -> dict[str, tuple[int, tuple[int, ...], torch.dtype]]:
        """Packed codes, lowest bit first, and the gain of every token; means, and scales, of every group."""
        stored: dict[str, tuple[int, tuple[int, ...], torch.dtype]] = {
            "codes": (1, (packed_width(head_dim, self.bits),), torch.uint8),
            "gain": (1, (), dtype),
        }
        if self.group_size is not None:
            stored["mean"] = (self.group_size, (head_dim,), dtype)
        if self.balance:
            stored["scale"] = (self.group_size or 1, (head_dim,), dtype)
        return stored

    def encode(self, exact: Tensor, constants: Constants) -> dict[str, Tensor]:
        """See `CacheCodec.encode`; arithmetic in float32, with means and scales as they are stored."""
        values, stored = exact.to(torch.float32), {}
        if self.group_size is not None:
            grouped = values.unflatten(2, (-1, self.group_size))
            mean = grouped.mean(3, keepdim=True).to(exact.dtype)
            grouped, stored["mean"] = grouped - mean.to(torch.float32), mean.squeeze(3)
            if self.balance:
                scale = store_scale(grouped.pow(2).mean(3, keepdim=True).pow(0.25), exact.dtype)
                grouped, stored["scale"] = grouped / scale, scale.squeeze(3).to(exact.dtype)
            values = grouped.flatten(2, 3)
        length = values.norm(dim=-1, keepdim=True)
        unit = values @ constants["rotation"] * (exact.shape[-1] ** 0.5 / length.clamp(min=torch.finfo(torch.float32).tiny))
        codes = _lattice_codes(unit) if self.lattice else _scalar_codes(unit, constants["levels"])
        gain = (length / rotated_levels(codes, constants).norm(dim=-1, keepdim=True)).clamp_(max=torch.finfo(exact.dtype).max)
        return {"codes": codes, "gain": gain.squeeze(-1).to(exact.dtype), **stored}

    def decode(self, codes: Codes, constants: Constants, dtype: torch.dtype) -> Tensor:
        """See `CacheCodec.decode`; arithmetic in float32."""
        return rotated_decode(codes, constants, dtype)

    def scores(self, query: Tensor, codes: Codes, constants: Constants) -> Tensor:
        """With the query rotated instead of the keys."""
        return choose("rotated_scores", self._signature(query, codes), query.device)(query, codes, constants)

    def mix(self, weights: Tensor, codes: Codes, constants: Constants) -> Tensor:
        """With the mixture rotated back instead of the values."""
        return choose("rotated_mix", self._signature(weights, codes), weights.device)(weights, codes, constants)


def _scalar_codes(unit: Tensor, levels: Tensor) -> Tensor:
    """Packed codes of the nearest levels."""
    codes = torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2, out_int32=True)
    if len(levels) == 16:  # see `levels_by_code`
        codes = torch.where(codes < 8, 15 - codes, codes - 8)
    return pack_across(codes.to(torch.uint8), len(levels).bit_length() - 1)


def _lattice_codes(unit: Tensor) -> Tensor:
    """Codes of the nearest codewords, two bytes for eight values, the low one first."""
    codes = nearest_codes((unit * BEST_RMS[2]).reshape(-1, SIZE))
    return torch.stack((codes & 255, codes >> 8), -1).to(torch.uint8).view(*unit.shape[:-1], unit.shape[-1] // 4)


def lattice_tables() -> dict[str, Tensor]:
    """`levels` and `signs [256, 8]` and `shift [256, 1]`: the codeword of the code `256 i + j` is `levels_i signs_j + shift_j`."""
    book = codebook().view(256, 256, SIZE)
    shift = torch.where(4 * book[0, :, :1] % 4 == 3, SHIFT, -SHIFT)  # the first row is ±½ ± ¼: ¾ or −¼ where ¼ was added
    return {"levels": book[:, 0] - shift[0], "signs": (book[0] - shift) / (book[0, 0] - shift[0]), "shift": shift}


@lru_cache
def best_levels(bits: int, head_dim: int, points: int = 2**14, rounds: int = 2000) -> tuple[float, ...]:
    """Lloyd and Max's `2^bits` levels for a coordinate of a vector uniform on the sphere of radius `√head_dim`, ascending.

    Its density is `∝ (1 − x²/d)^((d−3)/2)`, normal in the limit. Every level is the mean of its cell, every edge lies midway
    between two levels: iterated from equal cells, integrals as sums over `points`.

    Source: Lloyd 1982; Max 1960.
    """
    reach = min(head_dim**0.5, 8.0)
    x = (torch.arange(points, dtype=torch.float64) + 0.5) * (2 * reach / points) - reach
    density = (1 - x.square() / head_dim).pow((head_dim - 3) / 2)
    mass, moment = (torch.cat([torch.zeros(1, dtype=torch.float64), part.cumsum(0)]) for part in (density, density * x))
    cells = torch.searchsorted(mass / mass[-1], torch.linspace(0, 1, 2**bits + 1, dtype=torch.float64)[1:-1])
    for _ in range(rounds):
        edges = torch.cat([torch.zeros(1, dtype=torch.int64), cells, torch.full((1,), points)])
        levels = moment[edges].diff() / mass[edges].diff()
        before, cells = cells, torch.searchsorted(x, (levels[1:] + levels[:-1]) / 2)
        if torch.equal(cells, before):
            break
    return tuple(((levels - levels.flip(0)) / 2).tolist())
