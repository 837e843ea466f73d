"""Lattice weights between rotations, ready to be multiplied on a CUDA device for any number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from featherweight.kernels.cuda import hadamard, lattice
from featherweight.kernels.cuda import lattice_layout as layout
from featherweight.packed.base import PackedWeight
from featherweight.packed.integer import Integer
from featherweight.packed.lattice import Lattice
from featherweight.packed.lattice_device import output_factors, terms_of, to_device
from featherweight.packed.low_rank import LowRank
from featherweight.packed.rotated import PREFIX, Rotated
from featherweight.packed.signs import SIGN_DTYPE
from featherweight.packed.sum import Sum

#: Tokens up to which codes are multiplied, sixteen at a time; more go through dense values.
FEW_TOKENS = 32

#: Bytes of the dense values made at a time: they are multiplied from the second-level cache.
SLAB_BYTES = 24 << 20


class PreparedLattice:
    """Codes in the kernels' layout; what is stored can be had back from them bit for bit.

    Args:
        weight: see `featherweight.packed.lattice_device.unsupported`.
    """

    def __init__(self, weight: Rotated) -> None:
        self.description = weight.description()
        self.weight, self.factors = to_device(weight), output_factors(weight)

    def runs(self, x: Tensor) -> bool:
        """Whether `x` can be multiplied: bf16 or fp16, no gradients wanted."""
        return x.dtype in (torch.bfloat16, torch.float16) and not (torch.is_grad_enabled() and x.requires_grad)

    @torch.compiler.disable
    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x [..., in]` to `x · Wᵀ + bias`, `[..., out]`, in the dtype of `x`."""
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        flat = flat.clone() if flat.data_ptr() % 16 else flat
        if len(flat) > FEW_TOKENS:
            y = self._multiply_values(flat)
        else:
            parts = [
                lattice.multiply(part, self.weight) for part in flat.split(lattice.most_tokens(self.weight.inner)) if len(part)
            ]
            y = parts[0] if len(parts) == 1 else torch.cat([flat.new_empty(0, self.weight.inner.rows), *parts])
        y = y if self.factors is None else y.mul_(self.factors)
        y = y if bias is None else y + bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.weight.inner.rows)

    def _multiply_values(self, x: Tensor) -> Tensor:
        """Some rows' values at a time, dense, then torch's own products."""
        inner = self.weight.inner
        x = hadamard.rotate(x, self.weight.input, x.dtype)
        rows = max(layout.ROWS, SLAB_BYTES // (2 * inner.inputs) // 256 * 256)
        slab = torch.empty(min(rows, inner.rows), inner.inputs, dtype=x.dtype, device=x.device)
        y = torch.empty(len(x), inner.rows, dtype=x.dtype, device=x.device)
        for first in range(0, inner.rows, rows):
            part = slab[: min(rows, inner.rows - first)]
            lattice.values(inner, part, first)
            torch.mm(x, part.T, out=y[:, first : first + rows])
        if (term := self._term()) is not None:
            y += term.matmul(x)
        return y if self.weight.output is None else hadamard.rotate(y, self.weight.output, x.dtype)

    def stored(self) -> dict[str, Tensor]:
        """The stored tensors of the packed weight, rebuilt."""
        first, *others = terms_of(self.description["inner"])
        device = self.weight.inner
        codes, residual = layout.decode_codes(device.codes, device.rows, -(-device.inputs // layout.VECTOR))
        codes, residual = (self._in_order(each) for each in (codes, residual))
        assert codes is not None
        planes = {"codes": codes, "scale": device.scale} | ({} if residual is None else {"residual": residual})
        inner: PackedWeight = Lattice.from_tensors(first, planes)
        if self.description["inner"]["kind"] == "sum":
            term = self._term()
            inner = Sum((inner, term) if others and term is not None else (inner,))
        signs = {"input_signs": self.weight.input.signs}
        if self.factors is not None:
            signs["output_factors"] = self.factors.to(SIGN_DTYPE)
        elif self.weight.output is not None:
            signs["output_signs"] = self.weight.output.signs
        return {PREFIX + name: tensor for name, tensor in inner.tensors().items()} | signs

    def _term(self) -> LowRank | None:
        """The low-rank term as it is stored."""
        inner, right = self.weight.inner, self.weight.right
        if inner.left is None:
            return None
        described: Mapping[str, Any] = terms_of(self.description["inner"])[1]
        rank = described["rank"]
        outer = self._in_order(layout.decode_left(inner.left.codes, rank, inner.rows).T)
        assert outer is not None
        if inner.ranks is not None:
            codes, scales = layout.decode_ranks(inner.ranks.codes, rank, inner.inputs), inner.ranks.scales.T[:rank]
        else:
            assert right is not None
            codes, scales = layout.decode_right(right.codes, inner.inputs), right.scales
        return LowRank(
            _integer(described["left"], outer.T.contiguous(), inner.left.scales.T[:rank]),
            _integer(described["right"], codes, scales),
        )

    def _in_order(self, rows: Tensor | None) -> Tensor | None:
        """Rows `[out, ...]` that stand in the order of blocks, in their own."""
        blocks = self.weight.inner.blocks
        if blocks is None or rows is None:
            return rows
        order = layout.block_order(blocks.size >> blocks.twos, blocks.twos, blocks.near)
        return torch.empty_like(rows).index_copy_(0, order.to(rows.device), rows)

    def tensors(self) -> dict[str, Tensor]:
        """What lies on the device in their place."""
        weight, inner = self.weight, self.weight.inner
        named: dict[str, Tensor | None] = {"codes": inner.codes, "scale": inner.scale, "output_factors": self.factors}
        for side, rotation in (("input", weight.input), ("output", weight.output)):
            if rotation is not None:
                named |= {f"{side}_signs": rotation.signs, f"{side}_factor": rotation.factor}
        for side, factor in (("left", inner.left), ("right", inner.ranks or weight.right)):
            if factor is not None:
                named |= {f"{side}_codes": factor.codes, f"{side}_scales": factor.scales}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def _integer(described: Mapping[str, Any], codes: Tensor, scales: Tensor) -> Integer:
    return Integer.from_codes(codes, scales, None, described["bits"], described["group_size"])


def prepare_lattice(weight: Rotated) -> PreparedLattice:
    """The weight in the kernels' layout on the device of its tensors; the kernels for one token are compiled, as a proof.

    Raises:
        FeatherweightError: the compiler or the driver refuses.
    """
    prepared = PreparedLattice(weight)
    prepared(torch.zeros(1, weight.shape[1], dtype=torch.bfloat16, device=prepared.weight.inner.codes.device))
    return prepared
