"""Linears that share one input as one product: their weights are stacked where they are stored alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featherweight.decoding.coded import CodedRow, join
from featherweight.decoding.products import DenseRow, Product, Separate
from featherweight.kernels import registry
from featherweight.kernels.cuda.prepared import PreparedInteger
from featherweight.kernels.registry import Prepared
from featherweight.packed.base import PackedWeight
from featherweight.packed.dense import Dense
from featherweight.packed.linear import PackedModule, TiedPackedLinear
from featherweight.packed.stacking import stack


def make_product(modules: Sequence[nn.Module], batch: int, dtype: torch.dtype) -> Product:
    """The product of linears that share their input, outputs one after another, for activations of `dtype`.

    Weights that stack are stored stacked from here on, and the modules hold views of them: nothing is stored twice.
    """
    outputs = [int(module.weight.shape[0]) for module in modules]
    bias = _biases(modules, outputs)
    prepared = _prepared(modules, dtype)
    if prepared is not None:
        return _of_prepared(modules, prepared, sum(outputs), bias, batch, dtype)
    weights = [_weight(module) for module in modules]
    stacked = stack(weights) if len(weights) > 1 else weights[0]
    if stacked is None:
        return Separate([weight.matmul for weight in weights], sum(outputs), bias)
    if len(weights) > 1:
        _rehouse(modules, stacked.tensors())
    if batch == 1 and isinstance(stacked, Dense):
        signature = {"rows": batch, "dtype": str(stacked.values.dtype).removeprefix("torch.")}
        return DenseRow(stacked.values, bias, registry.choose("row_product", signature, stacked.values.device))
    return Separate([stacked.matmul], sum(outputs), bias)


def _prepared(modules: Sequence[nn.Module], dtype: torch.dtype) -> list[Prepared] | None:
    """The modules' weights in layouts of kernels; None unless all have one."""
    owners = [module._embedding[0] if isinstance(module, TiedPackedLinear) else module for module in modules]
    found = []
    for owner in owners:
        if not isinstance(owner, PackedModule):
            return None
        prepared = owner.prepared_for(torch.empty(1, owner.weight.shape[1], dtype=dtype, device=owner.weight.device))
        if prepared is None:
            return None
        found.append(prepared)
    return found


def _of_prepared(
    modules: Sequence[nn.Module],
    prepared: Sequence[Prepared],
    outputs: int,
    bias: Tensor | None,
    batch: int,
    dtype: torch.dtype,
) -> Product:
    """Codes stack by tiles; other layouts are multiplied one by one."""
    codes = [each.weight for each in prepared if isinstance(each, PreparedInteger)]
    joined = join(codes) if len(codes) == len(prepared) else None
    if joined is None:
        return Separate(prepared, outputs, bias)
    whole, parts = joined
    if len(modules) > 1:
        for module, part in zip(modules, parts, strict=True):
            assert isinstance(module, PackedModule)
            module.hold(PreparedInteger(part))
    return CodedRow.of(whole, bias, dtype) if batch == 1 else Separate([PreparedInteger(whole)], outputs, bias)


def _weight(module: nn.Module) -> PackedWeight:
    return module.packed if isinstance(module, PackedModule | TiedPackedLinear) else Dense(module.weight.data)


def _biases(modules: Sequence[nn.Module], outputs: Sequence[int]) -> Tensor | None:
    biases = [getattr(module, "bias", None) for module in modules]
    known = next((bias for bias in biases if bias is not None), None)
    if known is None:
        return None
    return torch.cat(
        [known.new_zeros(count) if bias is None else bias.data for bias, count in zip(biases, outputs, strict=True)]
    )


def _rehouse(modules: Sequence[nn.Module], stacked: dict[str, Tensor]) -> None:
    """Make every module's tensors views of its rows of the stacked ones."""
    first = 0
    for module in modules:
        packed = isinstance(module, PackedModule)
        rows = int(module.weight.shape[0])
        for name, tensor in stacked.items():
            part = tensor[first : first + rows]
            if packed:
                module._buffers[name] = part
            else:
                module.weight.data = part
        first += rows
