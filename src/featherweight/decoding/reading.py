"""A loaded model as what a decode step computes, if its modules are exactly that; or why they are not.

What is asked is the module tree and each module's own answer to a small input, not the model's name: blocks of attention with
rotated heads and of a gated MLP, an RMS norm before each, and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from featherweight.decoding.products import Norm, Product
from featherweight.decoding.stacked import make_product
from featherweight.errors import FeatherweightError
from featherweight.kernels.decoding import Heads
from featherweight.kernels.reference.decode_rows import activated, normed
from featherweight.models.experts import find_experts
from featherweight.models.structure import find_blocks
from featherweight.packed.linear import PackedEmbedding, PackedLinear, TiedPackedLinear

BLOCK = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
HEAD_NORMS = ("q_norm", "k_norm")
MLP = ("gate_proj", "up_proj", "down_proj")

#: Rotations whose angles depend on the position alone, not on how long the text has become.
ROTATIONS = ("default", "linear", "llama3", "yarn")

#: Settings that change logits or scores in ways that a step here does not.
REFUSED = ("attn_logit_softcapping", "final_logit_softcapping")


@dataclass(frozen=True)
class Block:
    """One decoder block: `h += output(attend(qkv(norm(h))))`, then `h += down(activation(gate) · up)` of its norm."""

    attention_norm: Norm
    qkv: Product
    heads: Heads
    output: Product
    mlp_norm: Norm
    gate_up: Product
    activation: str
    down: Product


@dataclass(frozen=True)
class Decoder:
    """Everything that a step reads.

    Attributes:
        embedding: the module; `table` is its dense weight, None if that is packed.
        rotation: of the model; cosine and sine by position come from it.
        dtype: of activations.
    """

    embedding: nn.Module
    table: Tensor | None
    blocks: tuple[Block, ...]
    norm: Norm
    head: Product
    rotation: Callable[..., tuple[Tensor, Tensor]]
    dtype: torch.dtype
    vocabulary: int
    hidden: int


def why_not(model: Any, length: int = 1) -> str:
    """Why no step of ours runs this model with caches of `length` tokens; empty if one does, as far as its modules tell."""
    try:
        _check(model, length)
    except FeatherweightError as problem:
        return f"{problem.error} ({problem.found})"
    return ""


def read_decoder(model: Any, batch: int, length: int) -> Decoder:
    """The decoder of a transformers causal model, linears that share an input stacked (see `make_product`).

    Raises:
        FeatherweightError: a module that is not what a step computes; it says which, and nothing was changed.
    """
    if getattr(model, "reads_blocks_from_disk", False):
        raise FeatherweightError("no step for this model", found="blocks that are read from disk for every forward")
    base, blocks = _check(model, length)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    table = embedding.weight.data if isinstance(embedding, nn.Embedding) else None
    dtype = embedding(torch.zeros(1, 1, dtype=torch.int64, device=next(_tensors(embedding)).device)).dtype
    return Decoder(
        embedding, table, tuple(_block(block, batch, dtype) for block in blocks), _norm(base.norm), make_product([head], batch, dtype),
        base.rotary_emb, dtype, int(head.weight.shape[0]), int(head.weight.shape[1]),
    )  # fmt: skip


def _check(model: Any, length: int) -> tuple[Any, list[Any]]:
    """The decoder below the head, and its blocks.

    Raises:
        FeatherweightError: anything but what a step computes.
    """
    base: Any = getattr(model, getattr(model, "base_model_prefix", ""), None)
    parts = {name for name, _ in base.named_children()} if isinstance(base, nn.Module) else set()
    if parts != {"embed_tokens", "layers", "norm", "rotary_emb"}:
        _refuse("the decoder has other parts", sorted(parts), "embed_tokens, layers, norm, rotary_emb")
    config = model.config.get_text_config(decoder=True)
    for name in REFUSED:
        if getattr(config, name, None):
            _refuse(f"the model has a setting {name}", getattr(config, name), "none")
    rotation = getattr(base.rotary_emb, "rope_type", None)
    if rotation not in ROTATIONS:
        _refuse("the rotation is of another kind", rotation, ", ".join(ROTATIONS))
    if not isinstance(model.get_input_embeddings(), nn.Embedding | PackedEmbedding):
        _refuse("the embedding is of another kind", type(model.get_input_embeddings()).__name__, "Embedding")
    _linear(model.get_output_embeddings(), "the head")
    _norm(base.norm)
    blocks = [model.get_submodule(path) for path in find_blocks(model)]
    for number, block in enumerate(blocks):
        _check_block(block, f"block {number}")
        window = getattr(block.self_attn, "sliding_window", getattr(config, "sliding_window", None))
        if window is not None and length > window:
            _refuse(f"block {number} sees a window only", f"a window of {window} tokens", f"at least {length}")
    return base, blocks


def _check_block(block: Any, where: str) -> None:
    children = {name for name, _ in block.named_children()}
    if children != BLOCK:
        _refuse(f"{where} has other parts", sorted(children), ", ".join(sorted(BLOCK)))
    attention, mlp = block.self_attn, block.mlp
    mixtures = find_experts(mlp)
    if mixtures:
        _refuse(f"the MLP of {where} is a mixture of experts", f"{mixtures.popitem()[1].layout.count} experts", "one gated MLP")
    inside = {name for name, _ in attention.named_children()}
    if inside not in (set(ATTENTION), {*ATTENTION, *HEAD_NORMS}):
        _refuse(f"the attention of {where} has other parts", sorted(inside), ", ".join(ATTENTION))
    if {name for name, _ in mlp.named_children()} != {*MLP, "act_fn"}:
        _refuse(f"the MLP of {where} has other parts", sorted(name for name, _ in mlp.named_children()), ", ".join(MLP))
    if getattr(attention, "sinks", None) is not None:
        _refuse(f"the attention of {where} has sinks", "sinks", "none")
    if getattr(attention, "use_rope", True) in (False, 0):
        _refuse(f"the attention of {where} does not rotate", "use_rope off", "rotated heads")
    for name, module in [(name, getattr(attention, name)) for name in ATTENTION] + [(name, getattr(mlp, name)) for name in MLP]:
        _linear(module, f"{name} of {where}")
    dim = attention.head_dim
    queries, keys = attention.q_proj.weight.shape[0], attention.k_proj.weight.shape[0]
    whole = queries % dim == keys % dim == 0 and queries % keys == 0 and attention.v_proj.weight.shape[0] == keys
    if not whole or dim & (dim - 1) or not 32 <= dim <= 256:
        _refuse(
            f"the heads of {where} are not alike", f"{queries} and {keys} outputs, heads of {dim}", "a power of two, 32 to 256"
        )
    _norm(block.input_layernorm), _norm(block.post_attention_layernorm)
    _activation(mlp.act_fn)


def _block(block: Any, batch: int, dtype: torch.dtype) -> Block:
    attention, mlp = block.self_attn, block.mlp
    norms = [_norm(getattr(attention, name)) if hasattr(attention, name) else None for name in HEAD_NORMS]
    gains, dim = [None if norm is None else norm.gain for norm in norms], int(attention.head_dim)
    keys = attention.k_proj.weight.shape[0] // dim
    group = attention.q_proj.weight.shape[0] // dim // keys
    heads = Heads(keys, group, dim, float(attention.scaling), gains[0], gains[1], 0.0 if norms[0] is None else norms[0].eps)
    return Block(
        _norm(block.input_layernorm), make_product([attention.q_proj, attention.k_proj, attention.v_proj], batch, dtype), heads,
        make_product([attention.o_proj], batch, dtype), _norm(block.post_attention_layernorm),
        make_product([mlp.gate_proj, mlp.up_proj], batch, dtype), _activation(mlp.act_fn), make_product([mlp.down_proj], batch, dtype),
    )  # fmt: skip


def _linear(module: Any, what: str) -> None:
    """Refuse anything but a linear of torch or of ours, alone on its device, without hooks."""
    if type(module) is not nn.Linear and not isinstance(module, PackedLinear | TiedPackedLinear):
        _refuse(f"{what} is of another kind", type(module).__name__, "Linear or PackedLinear")
    if module._forward_hooks or module._forward_pre_hooks:
        _refuse(f"{what} has hooks", "hooks", "none")


def _norm(module: Any) -> Norm:
    """The RMS norm that a module computes, found by handing it a vector; its gain may be stored less one.

    Raises:
        FeatherweightError: it computes something else.
    """
    module = _tangible(module)
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if isinstance(weight, Tensor) and weight.ndim == 1 and isinstance(eps, float):
        probe = torch.linspace(-2, 3, len(weight), device=weight.device).to(weight.dtype)
        with torch.no_grad():
            answer, base = module(probe[None])[0].float(), normed(probe.float(), eps)
        scale, close = answer.abs().max(), 0.02 if weight.dtype.itemsize < 4 else 1e-4
        for gain in (weight.detach().float(), 1 + weight.detach().float()):
            if (base * gain - answer).abs().max() <= close * scale:
                return Norm(gain, eps)
    _refuse("a norm is of another kind", type(module).__name__, "an RMS norm with a gain")


def _tangible(module: Any) -> Any:
    """The module; one without values as a copy with some, so that it can be asked what it computes."""
    if not any(tensor.is_meta for tensor in _tensors(module)):
        return module
    copied = copy.deepcopy(module).to_empty(device="cpu")
    for parameter in copied.parameters():
        parameter.data = torch.linspace(0.5, 1.5, parameter.numel(), dtype=parameter.dtype).view(parameter.shape)
    return copied


def _activation(module: Any) -> str:
    """The name of what a module computes, found by handing it numbers."""
    probe = torch.linspace(-6, 6, 97)
    with torch.no_grad():
        answer = module(probe)
    for name in ("silu", "gelu_tanh"):
        if torch.allclose(answer, activated(probe, name), atol=1e-5):
            return name
    _refuse("the activation is of another kind", type(module).__name__, "SiLU, or GELU by tanh")


def _tensors(module: nn.Module) -> Any:
    yield from module.parameters()
    yield from module.buffers()


def _refuse(what: str, found: object, expected: str) -> NoReturn:
    raise FeatherweightError(what, found=found, expected=expected, fix="none is needed: transformers' own step runs")
