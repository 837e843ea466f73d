"""Folding a map of an axis exactly into the weights on either side of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.models.axis import Axis, Producer
from featherweight.models.structure import is_transposed
from featherweight.models.transforms import Transform


def fold(model: nn.Module, axis: Axis, transform: Transform) -> None:
    """Fold `transform` into the producers of `axis`, and its inverse into all consumers, in place.

    The model computes the same function: exactly in real numbers, to the rounding of the stored dtype in fact (the product is
    taken in float64). The producers and consumers must be loaded.

    Raises:
        FeatherweightError: the axis does not admit this kind; something else reads it too; columns that one row makes would
            be treated differently; the map leaves an attention head; or a weight is on the meta device.
    """
    check_foldable(axis, transform)
    for name, tensor in folded_tensors(model, axis, transform).items():
        with torch.no_grad():
            model.get_parameter(name).copy_(tensor)


def check_foldable(axis: Axis, transform: Transform) -> None:
    """Raise the error that `fold` would raise for this map, whatever the weights; see there."""
    if transform.kind not in axis.admits:
        made = ", ".join(producer.name for producer in axis.producers) or "nothing that could take the map up"
        raise FeatherweightError(
            f"{axis.name} admits no {transform.kind} map",
            found=f"made by {made}; read by {', '.join(axis.consumers + axis.others)}",
            expected=", ".join(sorted(axis.admits)) or "no map at all, or axes completed by find_producers",
            fix="keep the map as a tensor beside the weight (Rotated), or choose one that is admitted",
        )
    if axis.others:
        raise FeatherweightError(f"{axis.name} is read by modules that take no part", found=", ".join(axis.others))
    if transform.size != axis.size:
        raise FeatherweightError(f"the map does not fit {axis.name}", found=transform.size, expected=axis.size)
    if axis.groups is not None and not transform.stays_within(torch.tensor(axis.groups)):
        raise FeatherweightError(
            f"the {transform.kind} map mixes columns of {axis.name} across attention heads",
            expected=f"a map within each of {len(set(axis.groups))} heads",
            fix="draw it with featherweight.models.draw_transform",
        )
    if axis.shared is not None:
        _check_shared(axis, torch.tensor(axis.shared), transform)


def folded_tensors(
    model: nn.Module, axis: Axis, transform: Transform, values: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors that folding changes, by parameter name, in float64 and in the layout that their modules store.

    Args:
        model: gives the modules' types, and the tensors where `values` is None.
        axis: with the producers that take part.
        transform: of the axis.
        values: tensors to fold into, by parameter name, instead of the model's.
    """

    def read(name: str) -> Tensor | None:
        tensor = values.get(name) if values is not None else _parameter(model, name)
        return tensor if tensor is None else tensor.detach().double()

    def oriented(module: str, tensor: Tensor) -> Tensor:
        return tensor.t() if is_transposed(model.get_submodule(module)) else tensor

    changed: dict[str, Tensor] = {}
    inverse = transform.contragredient()
    for consumer in axis.consumers:
        weight = read(f"{consumer}.weight")
        assert weight is not None  # a consumer is a linear, and a linear has a weight
        changed[f"{consumer}.weight"] = oriented(consumer, inverse.apply(oriented(consumer, weight)))
    for producer in axis.producers:
        if transform.kind not in producer.admits:
            continue
        for leaf, offset in (("weight", producer.offset), ("bias", 0.0)):
            name = f"{producer.name}.{leaf}"
            tensor = changed.get(name, read(name))  # two producers may be rows of one fused linear
            if tensor is None:
                continue
            rows = oriented(producer.name, tensor) if tensor.ndim == 2 else tensor
            changed[name] = fold_rows(rows + offset, producer, transform) - offset
            if tensor.ndim == 2:
                changed[name] = oriented(producer.name, changed[name])
    return changed


def fold_rows(tensor: Tensor, producer: Producer, transform: Transform) -> Tensor:
    """`tensor`, `[out]` or `[out, in]`, with `T` applied to those of its rows that make the axis."""
    rows = torch.arange(transform.size) if producer.rows is None else torch.tensor(producer.rows)
    rows = rows.to(tensor.device)
    folded = tensor.clone()
    folded[rows] = transform.apply(tensor[rows].transpose(0, -1)).transpose(0, -1)
    return folded


def _check_shared(axis: Axis, shared: Tensor, transform: Transform) -> None:
    """Columns that are always equal must stay equal under the map."""
    values = torch.randn(int(shared.max()) + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    after = transform.apply(values[shared])
    first = torch.zeros_like(values)
    first[shared] = after
    apart = ((after - first[shared]).abs() > 1e-9 * after.abs().max()).nonzero().flatten().tolist()
    if apart:
        raise FeatherweightError(
            f"columns of {axis.name} that one row makes (grouped-query heads) would be treated differently",
            found=f"column {apart[0]} and others of class {int(shared[apart[0]])}",
            expected="the same map for all columns of a class",
            fix="draw it with featherweight.models.draw_transform",
        )


def _parameter(model: nn.Module, name: str) -> Tensor | None:
    path, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), leaf, None)
    if not isinstance(tensor, Tensor):
        return None
    if tensor.device.type == "meta":
        raise FeatherweightError(f"{name} is not loaded", fix="materialize the block before folding")
    return tensor
