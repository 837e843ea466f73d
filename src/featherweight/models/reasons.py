"""Why a tensor is left alone: a reason in words for everything that is not the weight of a compressible linear."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from featherweight.models.experts import Experts


def left_alone(block: nn.Module, path: str) -> str:
    """Why the linear at `path` inside `block` is not offered for compression; empty if it is.

    Routers beside experts are left alone: they pick experts by the exact order of their scores. So are experts of a kind that
    `separate_experts` does not know, of which nothing tells which tokens they see.
    """
    parts = path.split(".")
    for depth in range(len(parts)):
        owner = block.get_submodule(".".join(parts[:depth]))
        experts = [name for name, child in owner.named_children() if "expert" in name.lower() and _is_expert_bank(child)]
        if not experts:
            continue
        if parts[depth] in experts:
            if isinstance(owner.get_submodule(parts[depth]), Experts):
                return ""
            return f"expert linear: one of the experts in '{experts[0]}'"
        if depth == len(parts) - 1:
            return "router"
    if any(isinstance(block.get_submodule(".".join(parts[:depth])), nn.ModuleList) for depth in range(1, len(parts))):
        return "linear inside a list of modules, of which a token may visit only some"
    return ""


def _is_expert_bank(module: nn.Module) -> bool:
    """Whether the module holds several experts: a list of them, or tensors with one slice each."""
    return isinstance(module, Experts | nn.ModuleList | nn.ModuleDict) or any(part.ndim == 3 for part in module.parameters())


def explain_parameters(
    model: nn.Module,
    blocks: tuple[str, ...],
    embedding: str | None,
    head: str | None,
    tied: bool,
    refused: Mapping[str, str],
) -> dict[str, str]:
    """A reason for every name in the model's state dict.

    Args:
        model: the whole model; its tensors may be on the meta device.
        blocks: module paths of the blocks.
        embedding: module path of the input embedding.
        head: module path of the output embedding.
        tied: whether both share one weight.
        refused: reasons that are known already, by parameter name.
    """
    names: dict[str, str] = {}
    persistent = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".")
        if name in refused:
            names[name] = refused[name]
        elif leaf == "weight" and path == embedding:
            names[name] = "embedding"
        elif leaf == "weight" and path == head:
            names[name] = f"head (tied to {embedding}.weight)" if tied else "head"
        elif name not in persistent:
            names[name] = "buffer"
        else:
            in_block = any(path == block or path.startswith(block + ".") for block in blocks)
            names[name] = _explain(model.get_submodule(path), path, leaf, tensor, in_block)
    return names


def _explain(module: nn.Module, path: str, leaf: str, tensor: Tensor, in_block: bool) -> str:
    kind, lower = type(module).__name__, f"{path}.{leaf}".lower()
    if tensor.ndim == 3 and "expert" in (kind + path).lower():
        count, rows, columns = tensor.shape
        return f"expert 3-D tensor: {count} experts of [{rows}, {columns}]"
    if "bias" in leaf:
        return "bias"
    if "norm" in kind.lower() or (tensor.ndim == 1 and "norm" in lower):
        return "norm"
    if isinstance(module, nn.Embedding):
        position = any(part in lower for part in ("position", "wpe", "pos_emb"))
        return "position embedding" if position else "embedding of another input"
    if any(part in lower for part in ("router", ".gate.")):
        return "router"
    if "sink" in leaf:
        return "attention sink"
    if tensor.ndim >= 3:
        return f"{tensor.ndim}-D tensor of {kind}: not the weight of a linear"
    if isinstance(module, nn.Linear):
        return "linear outside the blocks" if not in_block else "linear"
    return f"parameter of {kind}: not the weight of a linear"
