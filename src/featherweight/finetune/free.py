"""What is free in a model: its parameters by the name under which the files hold them, everything else frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.finetune.settings import Settings
from featherweight.finetune.strips import dense_factors, split_ranks, thaw
from featherweight.packed.base import PackedWeight, from_tensors
from featherweight.packed.linear import PackedLinear, PackedModule
from featherweight.packed.placing import place
from featherweight.packed.signs import real_signs, sign_vectors


class FreedLinear(nn.Module):  # type: ignore[misc]
    """A packed linear some of whose dense factors or sign vectors are trained; the rest are buffers without gradients.

    Args:
        packed: the linear in whose place it stands.
        leading: how many leading rows are free of each stored tensor to train.
    """

    def __init__(self, packed: PackedLinear, leading: Mapping[str, int]) -> None:
        super().__init__()
        tensors = packed.packed.tensors()
        self._description, held = thaw(packed.packed.description(), tensors, set(leading))
        self._held, self._trained = tuple(held), tuple(leading)
        for name, tensor in held.items():
            self.register_buffer(f"held_{name}", tensor[leading[name] :] if name in leading else tensor)
        self.factors = nn.ParameterDict(
            {name: nn.Parameter(tensors[name][:rows].float().clone()) for name, rows in leading.items()}
        )
        self.bias, self._sketch = packed.bias, packed.weight

    @property
    def weight(self) -> Any:
        """As `PackedModule.weight`: shape, dtype and device for model code that asks."""
        return self._sketch

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in]` to `[..., out]`."""
        tensors = {name: self.get_buffer(f"held_{name}") for name in self._held}
        tensors |= {name: torch.cat([self.factors[name], tensors[name].to(x.dtype)]) for name in self._trained}
        y = from_tensors(self._description, tensors).matmul(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def store_anew(model: nn.Module, settings: Settings) -> dict[str, PackedWeight]:
    """Give rounded low-rank terms dense leading ranks, and rotations real vectors, as `settings` ask; what changed, by module."""
    changed = {}
    for name, module in list(_packed(model)):
        weight = before = module.packed
        if settings.rank and "low_rank" in str(before.description()):
            weight = split_ranks(weight, settings.rank)
        weight = real_signs(weight, settings.real_sides)
        if weight.description() != before.description():
            place(model, name, weight, dtype=module.compute_dtype)
            changed[name] = weight
    return changed


def free_parameters(model: nn.Module, settings: Settings) -> dict[str, nn.Parameter]:
    """Freeze `model` but for what `settings.train` names; factors get modules of their own.

    Returns:
        The trained parameters, float32, under their names in the files; a factor's are its leading ranks.

    Raises:
        FeatherweightError: weights that no gradient passes, or nothing to train.
    """
    for name, module in _packed(model):
        if not module.packed.is_linear:
            raise FeatherweightError(
                "no gradient passes a weight that rounds its input",
                found=f"{name}: {module.packed.kind}",
                expected="an output without rounded activations",
                fix="fine-tune before activations are rounded, or without --method round-input",
            )
    model.requires_grad_(False)
    free: dict[str, nn.Parameter] = dict(_norms(model)) if "norms" in settings.train else {}
    for name, module in list(_packed(model)):
        leading = _leading(module, settings)
        if isinstance(module, PackedLinear) and leading:
            freed = FreedLinear(module, leading)
            model.set_submodule(name, freed)
            free |= {f"{name}.{each}": freed.factors[each] for each in leading}
    if settings.real_sides and not any(name.endswith("put_factors") for name in free):
        raise FeatherweightError(
            "there are no signs to train", found="no rotation in any weight", expected="weights between rotations",
            fix="leave signs and outputs out, or compress by quip or caldera",
        )  # fmt: skip
    if not free:
        raise FeatherweightError(
            "nothing is free to train",
            found=f"--train {','.join(settings.train)}",
            expected="norms, low-rank terms with dense factors, or rotations",
            fix="--train norms; --rank 8 stores leading ranks of rounded factors in 16 bits, where there is a low-rank term",
        )
    for parameter in free.values():
        parameter.requires_grad_(True)
    return free


def _leading(module: PackedModule, settings: Settings) -> dict[str, int]:
    """How many leading rows of which stored tensors are free."""
    description, found = module.packed.description(), {}
    tensors = module.packed.tensors()
    if "factors" in settings.train:
        for name in dense_factors(description, pairs=settings.rank is not None):
            found[name] = min(len(tensors[name]), settings.rank or len(tensors[name]))
    sides = tuple(f"{side}_factors" for side in settings.real_sides)
    found |= {name: len(tensors[name]) for name in sign_vectors(description) if sides and name.endswith(sides)}
    return found


def put(free: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Write values into the free parameters."""
    with torch.no_grad():
        for name, parameter in free.items():
            parameter.copy_(values[name])


def taken(free: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of the free parameters."""
    return {name: parameter.detach().clone() for name, parameter in free.items()}


def _packed(model: nn.Module) -> Iterator[tuple[str, PackedModule]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, PackedModule))


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights and biases of every normalisation, known by its class's name as transformers' models spell it."""
    for name, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            yield from ((f"{name}.{each}", parameter) for each, parameter in module.named_parameters(recurse=False))
