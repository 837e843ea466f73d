"""Blocks called without the model's weights: on the meta device, or with random weights in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from featherweight.errors import FeatherweightError
from featherweight.models.experts import find_experts
from featherweight.models.replay import BlockCall, override_forwards, record_calls
from featherweight.models.structure import is_linear

if TYPE_CHECKING:
    from featherweight.models.structure import Structure


class DoublePrecision(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped here
    """Inside, whatever a model does in float32 (norms, softmax, rotary tables) is done in float64 instead."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` with float64 wherever float32 was asked for."""
        if func is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def sample_calls(
    model: nn.Module, structure: Structure, shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, dict[str, BlockCall]]:
    """The blocks' hidden states and calls for `shape` = (samples, length) random tokens, on the CPU; reads no weights.

    What lies before the blocks runs with random weights, and the token embedding, which may be large, is not run at all.

    Raises:
        FeatherweightError: the model has no input embedding, or does not run its blocks once each, in order.
    """
    if structure.embedding is None:
        raise FeatherweightError(f"{type(model).__name__} has no input embedding", fix="choose a decoder-only model")
    skipped = (structure.embedding, structure.head, *structure.blocks)
    values = {
        name: _random(name, tensor, dtype, generator)
        for name, tensor in model.named_parameters()
        if not any(path is not None and name.startswith(path + ".") for path in skipped)
    }
    values |= {name: _real(buffer, dtype) for name, buffer in model.named_buffers()}
    width = model.get_submodule(structure.embedding).weight.shape[-1]
    embedded = torch.randn(*shape, width, dtype=dtype, generator=generator)
    arguments = {"input_ids": torch.ones(shape, dtype=torch.long), "use_cache": False}

    def forward() -> None:
        functional_call(model, values, (), arguments)

    with torch.no_grad(), override_forwards(model, {structure.embedding: lambda *args, **kwargs: embedded}):
        return record_calls(model, structure.blocks, forward)


def without_experts(block: nn.Module) -> dict[str, Callable[..., Any]]:
    """Forwards that pass tokens through 3-D tensors of experts unchanged: which expert a token visits depends on data."""

    def unchanged(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden

    banks = [path for path, part in block.named_modules() if any(p.ndim == 3 for p in part.parameters(recurse=False))]
    return {path: unchanged for path in banks if path and not is_linear(block.get_submodule(path))}


def meta_call(block: nn.Module, call: BlockCall, hidden: Tensor) -> None:
    """Run the block on the meta device, whatever device it is on; experts are passed by.

    Args:
        block: the module; hooks on it and its parts fire.
        call: its arguments.
        hidden: its hidden states `[samples, length, hidden]`; their dtype is given to all floating tensors.
    """
    tensors = dict(block.named_parameters()) | dict(block.named_buffers())
    values = {name: _cast(tensor, hidden.dtype, "meta") for name, tensor in tensors.items()}

    def run(*args: Any, **kwargs: Any) -> Any:
        return functional_call(block, values, args, kwargs)

    with torch.no_grad(), override_forwards(block, without_experts(block)):
        call.map(lambda tensor: tensor.to("meta")).run(run, hidden.to("meta"))


def with_first_expert(block: nn.Module) -> dict[str, Callable[..., Any]]:
    """Forwards that send all tokens to the first of the block's experts, for all of which it stands."""

    return {path: experts.first_alone for path, experts in find_experts(block).items()}


@dataclass
class RandomBlock:
    """A block with random float64 weights of its own; the model's are neither read nor changed. Of experts, it has the first.

    Attributes:
        model: that holds the block, and gives module types.
        block: module path.
        values: the block's tensors by their full names in the model.
    """

    model: nn.Module
    block: str
    values: dict[str, Tensor]

    @classmethod
    def make(cls, model: nn.Module, block: str, generator: torch.Generator) -> RandomBlock:
        """A block of the same shapes with weights of unit gain."""
        module = model.get_submodule(block)
        others = tuple(
            f"{path}.{number}." for path, bank in find_experts(module).items() for number in range(1, bank.layout.count)
        )
        values = {
            f"{block}.{name}": _random(name, tensor, torch.float64, generator)
            for name, tensor in module.named_parameters()
            if tensor.ndim < 3 and not name.startswith(others)
        }
        values |= {f"{block}.{name}": _real(buffer, torch.float64) for name, buffer in module.named_buffers()}
        return cls(model, block, values)

    def run(
        self,
        call: BlockCall,
        hidden: Tensor,
        changes: Mapping[str, Tensor] | None = None,
        outputs: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The input `[tokens, in]` of every linear of the block by its path, and the block's output.

        Args:
            call: the block's arguments.
            hidden: its hidden states `[samples, length, hidden]`, in float64.
            changes: tensors to use instead, by full name; derivatives are kept if any of them asks for it.
            outputs: what to do to the outputs of linears, by full path.
        """
        module = self.model.get_submodule(self.block)
        start = len(self.block) + 1
        values = {name[start:]: tensor for name, tensor in (self.values | dict(changes or {})).items()}
        inputs: dict[str, Tensor] = {}
        handles = []
        for path, part in module.named_modules():
            if is_linear(part):
                handles.append(part.register_forward_pre_hook(_keep_input(inputs, f"{self.block}.{path}")))
        for path, change in (outputs or {}).items():
            handles.append(self.model.get_submodule(path).register_forward_hook(_change_output(change)))

        def run(*args: Any, **kwargs: Any) -> Any:
            return functional_call(module, values, args, kwargs)

        try:
            tracked = any(tensor.requires_grad for tensor in values.values())
            passed = without_experts(module) | with_first_expert(module)
            with torch.set_grad_enabled(tracked), DoublePrecision(), override_forwards(module, passed):
                return inputs, call.run(run, hidden)
        finally:
            for handle in handles:
                handle.remove()


def _keep_input(inputs: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[name] = args[0].reshape(-1, args[0].shape[-1])

    return hook


def _change_output(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return change(output)

    return hook


def _random(name: str, tensor: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random values of a tensor's shape: small for biases, near 1 for other vectors, of about unit gain for matrices."""
    values = torch.randn(tensor.shape, dtype=dtype, generator=generator)
    if tensor.ndim > 1:
        return values / tensor.shape[-1] ** 0.5
    return 0.2 * values if "bias" in name.rpartition(".")[2] else 1 + 0.2 * values


def _real(buffer: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(buffer.shape, dtype=dtype) if buffer.device.type == "meta" else _cast(buffer, dtype, "cpu")


def _cast(tensor: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    return tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)
