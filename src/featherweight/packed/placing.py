"""Putting packed weights in the place of a model's dense modules."""

from __future__ import annotations

import torch
from torch import nn

from featherweight.packed.base import PackedWeight
from featherweight.packed.linear import PackedEmbedding, PackedLinear, TiedPackedLinear


def place(
    model: nn.Module, name: str, weight: PackedWeight, *, tied_head: str | None = None, dtype: torch.dtype | None = None
) -> None:
    """Replace the module `name` of `model` by a packed one with its bias.

    Args:
        weight: `[out, in]`, or `[vocabulary, features]` in the place of an embedding.
        tied_head: path of the output head that shares an embedding's weight; it then shares the packed one.
        dtype: of what the module gives; the replaced module's if None.
    """
    original = model.get_submodule(name)
    if not isinstance(original, nn.Embedding):
        bias = getattr(original, "bias", None)
        if bias is not None and len(bias) != weight.shape[0]:  # a weight with fewer outputs; values come from its file
            bias = bias.new_empty(weight.shape[0])
        model.set_submodule(name, PackedLinear(weight, bias, dtype or original.weight.dtype))
        return
    embedding = PackedEmbedding.like(original, weight)
    embedding.compute_dtype = dtype or embedding.compute_dtype
    model.set_submodule(name, embedding)
    if tied_head is not None:
        model.set_submodule(tied_head, TiedPackedLinear(embedding, getattr(model.get_submodule(tied_head), "bias", None)))
