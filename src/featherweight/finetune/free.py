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


class FreedLinear(nn.Module):  # type: ignore[misc]
    """A packed linear some of whose dense factors are trained; the rest are buffers without gradients.

    Args:
        packed: the linear in whose place it stands.
        names: stored tensors `[rank, features]` to train.
        rank: their leading ranks that are free; all if None.
    """

    def __init__(self, packed: PackedLinear, names: list[str], rank: int | None) -> None:
        super().__init__()
        tensors = packed.packed.tensors()
        self._description, held = thaw(packed.packed.description(), tensors, set(names))
        self._held, self._trained = tuple(held), tuple(names)
        for name, tensor in held.items():
            self.register_buffer(f"held_{name}", tensor[rank or len(tensor) :] if name in names else tensor)
        self.factors = nn.ParameterDict({name: nn.Parameter(tensors[name][:rank].float()) for name in names})
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


def restore_ranks(model: nn.Module, rank: int) -> dict[str, PackedWeight]:
    """Give every rounded low-rank term dense leading ranks (`split_ranks`); the weights that changed, by module."""
    changed = {}
    for name, module in list(_packed(model)):
        weight = module.packed
        if "low_rank" not in str(weight.description()):
            continue
        split = split_ranks(weight, rank)
        if split.description() != weight.description():
            place(model, name, split, dtype=module.compute_dtype)
            changed[name] = split
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
    if "factors" in settings.train:
        for name, module in list(_packed(model)):
            names = dense_factors(module.packed.description(), pairs=settings.rank is not None)
            if isinstance(module, PackedLinear) and names:
                freed = FreedLinear(module, names, settings.rank)
                model.set_submodule(name, freed)
                free |= {f"{name}.{each}": freed.factors[each] for each in names}
    if not free:
        raise FeatherweightError(
            "nothing is free to train",
            found=f"--train {','.join(settings.train)}",
            expected="norms, or low-rank terms with dense factors",
            fix="--train norms; --rank 8 stores leading ranks of rounded factors in 16 bits, where there is a low-rank term",
        )
    for parameter in free.values():
        parameter.requires_grad_(True)
    return free


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
