"""The E8 lattice as a grid: eight weights share a code of 2, 3 or 4 bits a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.grids.base import GridParameters
from featherweight.grids.e8_codebook import SIZE, codebook, looked_up, nearest_codes, nearest_small_codes, small_codebook

#: Bits to the root mean square at which normal values are best rounded.
BEST_RMS = {2: 1.03, 3: 0.98, 4: 1.03}

#: Bits to what the first codeword's error is multiplied by before the second codebook rounds it, and divided by afterwards.
RESIDUAL_SCALE = {3: 2.04, 4: 3.45}

#: Scales below this are not divided by.
SMALLEST_SCALE = 1e-30


@dataclass(frozen=True)
class E8Grid:
    """E8P12 (Tseng et al. 2024, arXiv:2402.04396, section 4): 2 bits a value in vectors of 8; 3 and 4 bits with a residual.

    `v = s (c₁ + c₂ / r)`: `c₁` of the 2-bit codebook, `c₂` of one with 1 bit a value (3 bits, `r` = 2.04) or of the same
    again (4 bits, `r` = 3.45). One `r` holds for encoding and decoding; the authors' later code has 0.9 in the one and these
    in the other.

    Attributes:
        bits: 2, 3 or 4.
        rms: `fit` scales its values to this root mean square; None for the best on normal values. Smaller values leave
            room for the corrections of a walk with error feedback (QuIP#: 0.9).

    Raises:
        FeatherweightError: bits outside these, or an RMS that is not positive.
    """

    bits: int = 2
    rms: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings outside their ranges."""
        if self.bits not in BEST_RMS:
            raise FeatherweightError(
                "bits that no lattice codebook has", found=self.bits, expected="2, 3 or 4", fix="use bits=2"
            )
        if self.rms is not None and not 0 < self.rms < float("inf"):
            raise FeatherweightError(
                "an RMS that values cannot be scaled to", found=self.rms, expected="above 0", fix="use 0.9"
            )

    @property
    def vector_size(self) -> int:
        """Eight values have one code."""
        return SIZE

    @property
    def rounding(self) -> None:
        """Block kernels round single columns."""
        return None

    @property
    def largest_code(self) -> int:
        """`2^(8 bits) − 1`; codes of 4 bits are held in int32 and wrap around."""
        return 2 ** (SIZE * self.bits) - 1

    def fit(self, values: Tensor, importance: Tensor | None = None) -> GridParameters:
        """One scale for all of `values [rows, width]`, repeated in every row: their RMS over `rms`. 0 if they are all 0."""
        mean = values.to(torch.float64).square().mean().sqrt() if values.numel() else torch.zeros((), dtype=torch.float64)
        scale = (mean / (self.rms or BEST_RMS[self.bits])).to(torch.float32).expand(len(values), 1)
        return GridParameters(scale, torch.zeros_like(scale))

    def encode(self, values: Tensor, parameters: GridParameters) -> Tensor:
        """Codes of the nearest codewords of `values [rows, 8 n]`, `[rows, n]` int32: the first 16 bits, residual above."""
        vectors = (values / parameters.scale.clamp(min=SMALLEST_SCALE)).reshape(-1, SIZE)
        codes = nearest_codes(vectors)
        if self.bits > 2:
            rest = (vectors - looked_up(codebook, codes)) * RESIDUAL_SCALE[self.bits]
            codes |= (nearest_codes(rest) if self.bits == 4 else nearest_small_codes(rest)) << 16
        return codes.view(len(values), -1)

    def decode(self, codes: Tensor, parameters: GridParameters) -> Tensor:
        """The values of `codes [rows, n]`, `[rows, 8 n]` float32."""
        return (self.units(codes) * parameters.scale[..., None]).flatten(-2)

    def units(self, codes: Tensor) -> Tensor:
        """The codewords of `codes [...]`, `[..., 8]` float32, before they are scaled; the one place where codes become values."""
        first = looked_up(codebook, codes & 0xFFFF)
        if self.bits == 2:
            return first
        book, mask = (codebook, 0xFFFF) if self.bits == 4 else (small_codebook, 0xFF)
        return first.add_(looked_up(book, codes >> 16 & mask), alpha=1 / RESIDUAL_SCALE[self.bits])
