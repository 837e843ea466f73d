"""Blocks, linears and everything else of a decoder, found from its module tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError, nearest
from featherweight.models.experts import find_experts
from featherweight.models.reasons import explain_parameters, left_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Linear:
    """A named `[out, in]` view of one module: an `nn.Linear`, or transformers' `Conv1D`, whose weight is transposed.

    Attributes:
        name: module path in the model.
        shape: `(out, in)`.
        transposed: whether the module stores `[in, out]`.
        bias: whether it has a bias `[out]`.
    """

    name: str
    shape: tuple[int, int]
    transposed: bool = False
    bias: bool = False

    @property
    def weight_name(self) -> str:
        """Name of the weight in the model's state dict."""
        return f"{self.name}.weight"

    def read(self, model: nn.Module) -> Tensor:
        """The module's weight as `[out, in]`: a view, not a copy."""
        weight = self._tensor(model, "weight")
        if weight is None:
            raise FeatherweightError(f"{self.name} holds no weight any more", fix="read a linear before replacing it")
        return weight.t() if self.transposed else weight

    def bias_of(self, model: nn.Module) -> Tensor | None:
        """The module's bias `[out]`, if it has one."""
        return self._tensor(model, "bias")

    def replace(self, model: nn.Module, module: nn.Module) -> None:
        """Put `module` in this linear's place; it takes `[..., in]` to `[..., out]`."""
        model.set_submodule(self.name, module)

    def _tensor(self, model: nn.Module, leaf: str) -> Tensor | None:
        tensor = getattr(model.get_submodule(self.name), leaf, None)
        return tensor.detach() if isinstance(tensor, Tensor) else None


@dataclass(frozen=True)
class Structure:
    """A decoder, as its module tree shows it.

    Attributes:
        blocks: module paths in the order of execution.
        linears: by block, the linears that may be compressed, in the order of the module tree.
        embedding: module path of the input embedding.
        head: module path of the output embedding.
        tied: whether the head's weight is the embedding's.
        parameters: every parameter and persistent buffer that is not the weight of a linear above, with the reason why it is
            left alone.
        experts: module paths of mixtures whose experts are linears here, and one 3-D tensor a role in transformers.
    """

    blocks: tuple[str, ...]
    linears: dict[str, tuple[Linear, ...]]
    embedding: str | None
    head: str | None
    tied: bool
    parameters: dict[str, str] = field(repr=False)
    experts: tuple[str, ...] = ()

    def linear(self, name: str) -> Linear:
        """The linear with this module path; raises FeatherweightError with the nearest names."""
        known = {linear.name: linear for linears in self.linears.values() for linear in linears}
        if name not in known:
            raise FeatherweightError(f"there is no linear {name!r}", found=name, expected=", ".join(nearest(name, known)))
        return known[name]


def find_structure(model: PreTrainedModel) -> Structure:
    """Blocks, linears, embedding and head of `model`, and a reason for everything else; reads no weights.

    Raises:
        FeatherweightError: the tree holds no list of decoder blocks.
    """
    blocks = find_blocks(model)
    refused: dict[str, str] = {}
    linears: dict[str, tuple[Linear, ...]] = {}
    for block in blocks:
        found = []
        whole = model.get_submodule(block)
        for path, module in whole.named_modules():
            if not is_linear(module):
                continue
            name = f"{block}.{path}"
            reason = left_alone(whole, path)
            if reason:
                refused[f"{name}.weight"] = reason
            else:
                found.append(_linear(name, module))
        linears[block] = tuple(found)
    embedding = _path_of(model, model.get_input_embeddings())
    head = _path_of(model, model.get_output_embeddings())
    weights = [module.weight if module is not None else None for module in (_get(model, embedding), _get(model, head))]
    tied = weights[0] is not None and weights[0] is weights[1]
    kept = {linear.weight_name for group in linears.values() for linear in group}
    reasons = explain_parameters(model, blocks, embedding, head, tied, refused)
    parameters = {name: reason for name, reason in reasons.items() if name not in kept}
    return Structure(blocks, linears, embedding, head, tied, parameters, tuple(find_experts(model)))


def find_blocks(model: PreTrainedModel) -> tuple[str, ...]:
    """Module paths of the decoder blocks: the `ModuleList` as long as the config says, of classes that must not be split.

    A list whose items' classes the model does not declare is taken only if no other is found.

    Raises:
        FeatherweightError: there is no such list.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    whole = set(getattr(model, "_no_split_modules", None) or ())
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and count > 0
    }
    declared = [path for path, items in lists.items() if {type(item).__name__ for item in items} <= whole]
    candidates = declared or [path for path, items in lists.items() if any(is_linear(part) for part in items.modules())]
    if not candidates:
        lengths = {path: len(m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList)}
        raise FeatherweightError(
            f"{type(model).__name__} has no list of decoder blocks",
            found=f"module lists and their lengths: {lengths}",
            expected=f"a ModuleList of {count} blocks (num_hidden_layers)",
            fix="choose a decoder-only model",
        )
    largest = max(candidates, key=lambda path: sum(p.numel() for p in lists[path].parameters()))
    return tuple(f"{largest}.{index}" for index in range(count))


def is_linear(module: nn.Module) -> bool:
    """Whether the module multiplies by one weight: an `nn.Linear`, or a `Conv1D` as in GPT-2."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether the module is transformers' `Conv1D`, a linear that stores `[in, out]`."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2


def _linear(name: str, module: nn.Module) -> Linear:
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, torch.Tensor)
    rows, columns = (int(size) for size in weight.shape)
    transposed = is_transposed(module)
    return Linear(name, (columns, rows) if transposed else (rows, columns), transposed, bias is not None)


def _path_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((path for path, module in model.named_modules() if module is wanted), None) if wanted is not None else None


def _get(model: nn.Module, path: str | None) -> nn.Module | None:
    return model.get_submodule(path) if path is not None else None
