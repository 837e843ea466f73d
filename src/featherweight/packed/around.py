"""Weights that run through the kernel of what is inside them: sliced ones, and masked codes whose mask no kernel reads."""

from __future__ import annotations

import torch
from torch import Tensor

from featherweight.kernels.registry import Prepared
from featherweight.packed.base import from_tensors
from featherweight.packed.lower import prepare
from featherweight.packed.masked import PREFIX, Masked
from featherweight.packed.sliced import PREFIX as SLICED_PREFIX
from featherweight.packed.sliced import Sliced
from featherweight.packed.sparse_rows import read_positions


class PreparedSliced:
    """Kept inputs are gathered once, the small weight multiplies them, its outputs are put among zeros."""

    def __init__(self, weight: Sliced, inner: Prepared) -> None:
        self.full, self.inner = weight.full, inner
        self.kept = {"kept_inputs": weight.inputs, "kept_outputs": weight.outputs}
        self._inputs, self._outputs = (None if each is None else read_positions(each) for each in self.kept.values())

    def runs(self, x: Tensor) -> bool:
        """As the small weight's kernel."""
        return self.inner.runs(x)

    def stored(self) -> dict[str, Tensor]:
        """The stored tensors, rebuilt."""
        inner = {SLICED_PREFIX + name: tensor for name, tensor in self.inner.stored().items()}
        return inner | {name: tensor for name, tensor in self.kept.items() if tensor is not None}

    def tensors(self) -> dict[str, Tensor]:
        """The small weight's, and the positions."""
        places = {"inputs": self._inputs, "outputs": self._outputs}
        return self.inner.tensors() | {f"kept_{name}": each for name, each in places.items() if each is not None}

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x [..., in]` to `x · Wᵀ + bias`, `[..., out]`; a dropped output is its bias."""
        small = x if self._inputs is None else x.index_select(-1, self._inputs)
        if self._outputs is None:
            return self.inner(small, bias)
        whole = x.new_zeros(*x.shape[:-1], self.full[0]) if bias is None else bias.to(x.dtype).expand(*x.shape[:-1], -1).clone()
        return whole.index_add_(-1, self._outputs, self.inner(small))


class PreparedMaskedCodes:
    """All codes of a masked weight, those that were dropped on their zero point; the mask lies beside them, unread."""

    def __init__(self, weight: Masked, inner: Prepared) -> None:
        self.described, self.inner = weight.described, inner
        self.mask = weight.tensors().get("mask")

    def runs(self, x: Tensor) -> bool:
        """As the codes' kernel."""
        return self.inner.runs(x)

    def stored(self) -> dict[str, Tensor]:
        """The stored tensors, rebuilt."""
        values = {PREFIX + name: tensor for name, tensor in self.inner.stored().items()}
        if self.mask is None:
            return values
        support = Masked(self.described, {**values, "mask": self.mask}).support
        leaf = from_tensors(self.described["values"], self.inner.stored())
        return Masked.of(leaf, support, self.described).tensors()

    def tensors(self) -> dict[str, Tensor]:
        """The codes', and the mask."""
        return self.inner.tensors() | ({} if self.mask is None else {"mask": self.mask})

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x [..., in]` to `x · Wᵀ + bias`, `[..., out]`."""
        return self.inner(x, bias)


def prepare_sliced(weight: Sliced) -> PreparedSliced | None:
    """What is left of the weight by its own kernel; None where it has none."""
    inner = prepare(weight.inner, torch.bfloat16)
    return None if inner is None else PreparedSliced(weight, inner)


def prepare_masked_codes(weight: Masked) -> PreparedMaskedCodes | None:
    """All codes by their own kernel; None where they have none."""
    inner = prepare(weight.values, torch.bfloat16)
    return None if inner is None else PreparedMaskedCodes(weight, inner)
