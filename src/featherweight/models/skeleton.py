"""A model without its weights, and one part of it at a time with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError, nearest
from featherweight.models.experts import separate_experts
from featherweight.models.weights import Weights, tied_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_skeleton(source_config: Any, dtype: torch.dtype | None = None, *, fused_experts: bool = False) -> PreTrainedModel:
    """The causal language model that a transformers config describes, in eval mode and without weights.

    Parameters and persistent buffers are on the meta device; buffers that no checkpoint holds (rotary frequencies) are real,
    on the CPU. Tied parameters are one tensor.

    Args:
        source_config: a transformers config; it is copied.
        dtype: of the floating parameters; None takes the config's, else float32.
        fused_experts: leave experts as transformers holds them, in 3-D tensors, rather than as linears (`Experts`).

    Raises:
        FeatherweightError: transformers knows no causal language model for this config.
    """
    import copy

    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = copy.deepcopy(source_config)
    chosen = dtype or getattr(config, "dtype", None) or torch.float32
    try:
        with init_empty_weights(include_buffers=False), no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=chosen, trust_remote_code=False)
    except (ValueError, KeyError, AttributeError, ImportError) as error:
        raise FeatherweightError(
            f"transformers cannot build a causal language model of type {getattr(config, 'model_type', None)!r}",
            found=f"architectures {getattr(config, 'architectures', None)}: {str(error).splitlines()[0][:200]}",
            expected="a decoder that AutoModelForCausalLM knows, without code of its own",
            fix="update transformers, or choose a decoder-only model",
        ) from error
    if not fused_experts:
        separate_experts(model)
    model.tie_weights()
    release(model, "")
    return model.eval()


def materialize(model: nn.Module, prefix: str, weights: Weights, dtype: torch.dtype | None, device: torch.device | str) -> None:
    """Load every parameter and persistent buffer of the module at `prefix` from `weights`, in place.

    Tied parameters stay one tensor, wherever their other names are. Buffers that no checkpoint holds move to `device`.
    Parameters come back without gradients.

    Args:
        model: a skeleton, or a model that is partly loaded.
        prefix: module path; '' means the whole model.
        weights: of this model.
        dtype: to convert floating tensors to; None keeps the stored one.
        device: to put them on.

    Raises:
        FeatherweightError: no module at `prefix`; a value that is NaN or infinite, as stored or after conversion.
    """
    module = _module(model, prefix)
    for name, aliases in tied_names(model).items():
        if any(_is_under(alias, prefix) for alias in aliases):
            put_tensor(model, aliases, _checked(weights.read(name), name, dtype).to(device))
    for buffer_owner, leaf in _transient_buffers(module):
        buffer = buffer_owner._buffers[leaf]
        assert buffer is not None  # `_transient_buffers` lists those that are there
        buffer_owner._buffers[leaf] = buffer.to(device)


def release(model: nn.Module, prefix: str) -> None:
    """Put the parameters and persistent buffers of the module at `prefix` ('' = all) back on the meta device, in place.

    Raises:
        FeatherweightError: no module at `prefix`.
    """
    _module(model, prefix)
    state = model.state_dict(keep_vars=True)
    for name, aliases in tied_names(model).items():
        if any(_is_under(alias, prefix) for alias in aliases) and state[name].device.type != "meta":
            put_tensor(model, aliases, torch.empty_like(state[name], device="meta"))


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        known = [name for name, _ in model.named_modules() if name]
        raise FeatherweightError(
            f"the model has no module {path!r}", found=path, expected=", ".join(nearest(path, known))
        ) from error


def _is_under(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(prefix + ".")


def put_tensor(model: nn.Module, names: tuple[str, ...], tensor: Tensor) -> None:
    """Make `tensor` what all `names` stand for."""
    parameter: nn.Parameter | None = None
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = tensor
            continue
        if parameter is None:
            parameter = nn.Parameter(tensor, requires_grad=False)
        owner._parameters[leaf] = parameter


def _checked(tensor: Tensor, name: str, dtype: torch.dtype | None) -> Tensor:
    """The tensor in `dtype`, if that keeps every value finite."""
    if not tensor.is_floating_point():
        return tensor
    converted = tensor if dtype is None else tensor.to(dtype)
    if _is_finite(converted):
        return converted
    if not _is_finite(tensor):
        bad = int((~torch.isfinite(tensor.float())).sum())
        raise FeatherweightError(
            f"the tensor {name} holds values that are NaN or infinite",
            found=f"{bad} of {tensor.numel()}",
            expected="finite values",
            fix="the checkpoint is damaged: download it again",
        )
    raise FeatherweightError(
        f"the tensor {name} does not fit into {dtype}",
        found=f"a largest magnitude of {float(tensor.abs().max()):.4g}",
        expected=f"at most {torch.finfo(converted.dtype).max:.4g}",
        fix="use bfloat16 or float32",
    )


def _is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite: both show in the extremes, which cost a thirtieth of `isfinite`."""
    values = tensor.float() if tensor.element_size() == 1 else tensor
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def _transient_buffers(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Owner and leaf name of every buffer that is not part of the state dict."""
    return [
        (owner, leaf)
        for owner in module.modules()
        for leaf in sorted(owner._non_persistent_buffers_set)
        if owner._buffers.get(leaf) is not None
    ]
