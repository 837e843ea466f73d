"""Keys as signs of random projections."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, lgamma, log, pi, sqrt
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.kernels.registry import choose
from featherweight.kv_cache.codec import CacheCodec, Codes, Constants, Part
from featherweight.kv_cache.integer import check_chunks
from featherweight.kv_cache.rotation import hadamard, orthogonal

Projection = Literal["orthogonal", "gaussian", "hadamard"]
Constant = Literal["exact", "gaussian"]


@dataclass(frozen=True)
class QJL(CacheCodec):
    """`⟨q, k̂⟩ = c/m ‖k‖ Σ_t (Sᵀq)_t sign((Sᵀk)_t)`, unbiased over projections S; a group's outlier channels are sketched apart.

    A key stores the signs and its norm, without a scale or a zero point. The query is never rounded.

    Attributes:
        sketch: m, signs of a key, a multiple of 32; None for `sketch_length(ratio, head_dim)`.
        ratio: m relative to 4 signs a channel, where `sketch` is None.
        outliers: channels sketched apart in each group, those of largest norm over its tokens; 0 for none.
        outlier_sketch: their signs, a multiple of 32, at most m; None for m.
        group_size: tokens that share outlier channels.
        window: tokens settle so many at a time, so fewer are exact; a multiple of `group_size`.
        projection: "orthogonal": columns of norm √d, orthogonal within every d of them. "gaussian": independent normal entries.
            "hadamard": orthogonal, then a signed Hadamard; head dimensions that are powers of two.
        constant: c. "exact": unbiased for the projection. "gaussian": √(π/2) for all, as the authors' code.

    Raises:
        FeatherweightError: a setting outside these ranges.
    """

    name: ClassVar[str] = "qjl"
    summary: ClassVar[str] = "keys as signs of a random projection, without scales; outlier channels sketched apart"
    source: ClassVar[str] = "QJL, Zandieh et al. 2024, arXiv:2406.03482, algorithm 1; and its code"
    serves: ClassVar[frozenset[Part]] = frozenset({"keys"})

    sketch: int | None = None
    ratio: float = 0.5
    outliers: int = 8
    outlier_sketch: int | None = None
    group_size: int = 32
    window: int = 128
    projection: Projection = "orthogonal"
    constant: Constant = "exact"

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, length in (("sketch", self.sketch), ("outlier_sketch", self.outlier_sketch)):
            if length is not None and (length < 32 or length % 32):
                raise FeatherweightError(
                    f"{name} is not whole words of signs", found=length, expected="a multiple of 32",
                    fix=f"use {32 * max(1, round(length / 32))}",
                )  # fmt: skip
        if not 0 < self.ratio <= 1:
            raise FeatherweightError("ratio outside its range", found=self.ratio, expected="above 0, at most 1", fix="use 0.5")
        if self.group_size < 1 or self.outliers < 0:
            raise FeatherweightError(
                "a group has tokens, and no fewer than 0 outliers",
                found=f"group_size: {self.group_size}, outliers: {self.outliers}",
            )
        check_chunks(self.window, self.group_size)
        for name, value, known in (
            ("projection", self.projection, get_args(Projection)), ("constant", self.constant, get_args(Constant))
        ):  # fmt: skip
            if value not in known:
                raise FeatherweightError(f"unknown {name}", found=value, expected=", ".join(known))

    @property
    def group(self) -> int:
        """Tokens that share outlier channels."""
        return self.group_size

    def settled(self, total: int) -> int:
        """Whole windows."""
        return total - total % self.window

    def lengths(self, head_dim: int) -> tuple[int, int]:
        """`(m, m_o)`."""
        sketch = self.sketch or sketch_length(self.ratio, head_dim)
        return sketch, self.outlier_sketch or sketch

    def check(self, head_dim: int) -> None:
        """Outliers must be channels with an index of one byte, their sketch part of the whole; Hadamard powers of two."""
        sketch, outlier_sketch = self.lengths(head_dim)
        if self.outliers > head_dim or head_dim > 256:
            raise FeatherweightError(
                "qjl cannot hold these outliers", found=f"{self.outliers} of {head_dim} channels",
                expected="at most all channels, of at most 256",
            )  # fmt: skip
        if outlier_sketch > sketch:
            raise FeatherweightError(
                "outlier_sketch is longer than the sketch", found=outlier_sketch, expected=f"at most {sketch}",
                fix="leave it out: it is the sketch's length then",
            )  # fmt: skip
        if self.projection == "hadamard" and head_dim & (head_dim - 1):
            raise FeatherweightError(
                "no Hadamard matrix for these heads", found=f"head_dim {head_dim}", expected="a power of two",
                fix="use projection: orthogonal",
            )  # fmt: skip

    def constants(self, head_dim: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`S [head_dim, m]`."""
        sketch, _ = self.lengths(head_dim)
        if self.projection == "gaussian":
            return {"projection": torch.randn(head_dim, sketch, generator=generator)}
        widths = [min(head_dim, sketch - start) for start in range(0, sketch, head_dim)]
        columns = torch.cat([orthogonal(head_dim, generator)[:, :width] for width in widths], 1) * sqrt(head_dim)
        return {"projection": hadamard(head_dim, generator) @ columns if self.projection == "hadamard" else columns}

    def layout(self, head_dim: int, dtype: torch.dtype) -> dict[str, tuple[int, tuple[int, ...], torch.dtype]]:
        """Signs and norm of every token; with outliers theirs as well, and their indices of every group."""
        sketch, outlier_sketch = self.lengths(head_dim)
        stored: dict[str, tuple[int, tuple[int, ...], torch.dtype]] = {
            "signs": (1, (sketch // 8,), torch.uint8),
            "norm": (1, (), dtype),
        }
        if self.outliers:
            stored["outlier_signs"] = (1, (outlier_sketch // 8,), torch.uint8)
            stored["outlier_norm"] = (1, (), dtype)
            stored["outliers"] = (self.group_size, (self.outliers,), torch.uint8)
        return stored

    def encode(self, exact: Tensor, constants: Constants) -> dict[str, Tensor]:
        """See `CacheCodec.encode`."""
        head_dim = exact.shape[-1]
        sketch, outlier_sketch = self.lengths(head_dim)
        signature: dict[str, object] = {
            "head_dim": head_dim,
            "sketch": sketch,
            "outlier_sketch": outlier_sketch,
            "outliers": self.outliers,
        }
        signature |= {"group_size": self.group_size, "dtype": str(exact.dtype).removeprefix("torch.")}
        encode = choose("qjl_encode", signature, exact.device)
        return encode(exact, constants["projection"], self.outliers, outlier_sketch, self.group_size)

    def decode(self, codes: Codes, constants: Constants, dtype: torch.dtype) -> Tensor:
        """The vector whose product with any query is its score; see `qjl_decode`."""
        projection = constants["projection"]
        return choose("qjl_decode", {"outliers": self.outliers}, projection.device)(
            codes, projection, self.unbiased(len(projection)), dtype
        )

    def scores(self, query: Tensor, codes: Codes, constants: Constants) -> Tensor:
        """From the sketches, `qjl_scores`; for more queries than tokens in a group decoding once takes less memory."""
        signature = self._signature(query, codes) | {"head_dim": query.shape[-1]}
        if signature["queries"] > self.group_size:
            return super().scores(query, codes, constants)
        scores = choose("qjl_scores", signature, query.device)
        return scores(query, codes, constants["projection"], self.unbiased(query.shape[-1]))

    def unbiased(self, head_dim: int) -> float:
        """`c = 1 / E|s₁|` of a column: √(π/2) if normal; `√π Γ((d+1)/2) / (√d Γ(d/2))` if uniform on the sphere of radius √d."""
        if self.projection == "gaussian" or self.constant == "gaussian":
            return sqrt(pi / 2)
        return exp(0.5 * log(pi / head_dim) + lgamma((head_dim + 1) / 2) - lgamma(head_dim / 2))


def sketch_length(ratio: float, head_dim: int) -> int:
    """`m = 32 · round(ratio · 4 · head_dim / 32)`, at least 32: a ratio of 0.5 is two signs a channel."""
    return 32 * max(1, round(ratio * 4 * head_dim / 32))
