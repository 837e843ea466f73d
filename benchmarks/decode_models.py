"""Models of true shapes with random weights in several storages, made on the device; and the same in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from featherweight.engine.forms import Chain, pack_by
from featherweight.kernels.bits import packed_width
from featherweight.methods.magnitude import Magnitude
from featherweight.methods.rtn import RTN
from featherweight.methods.spqr import SpQR
from featherweight.packed.base import PackedWeight, from_tensors
from featherweight.packed.integer import Integer
from featherweight.packed.linear import PackedLinear

LLAMA = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
SHAPES: dict[str, dict[str, Any]] = {
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32000},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256},
    "tiny": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096, "tie_word_embeddings": True},
}  # fmt: skip
#: Bits of every linear of the blocks, and of the head where it is packed, too.
FORMS: dict[str, tuple[int | None, int | None]] = {
    "bf16": (None, None), "4-bit": (4, None), "3-bit": (3, None), "2-bit": (2, None), "8-bit": (8, None),
    "4-bit, 8-bit head": (4, 8),
}  # fmt: skip
#: Chains by which a random weight of each shape is packed once, and copied to every block.
CHAINS: dict[str, Chain] = {
    "spqr 3-bit, 1 %": (SpQR(outlier_threshold=0.3, max_outlier_share=0.2),),
    "2:4 + 4-bit": (Magnitude(pattern="2:4"), RTN(bits=4, group_size=128)),
    "50 % bf16": (Magnitude(),),
}
GROUP = 128


def random_weight(shape: tuple[int, int], bits: int | None, device: str) -> Tensor | PackedWeight:
    """Values of standard deviation 0.02, dense or as random codes of a symmetric grid in groups of 128."""
    rows, inputs = shape
    if bits is None:
        return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02)
    codes = torch.randint(0, 256, (rows, packed_width(inputs, bits)), dtype=torch.uint8, device=device)
    scales = torch.empty(rows, -(-inputs // GROUP), dtype=torch.bfloat16, device=device).uniform_(0.9, 1.1)
    return Integer(inputs, bits, GROUP, codes, scales * (0.02 * 12**0.5 / 2**bits))


@torch.no_grad()
def build(config: LlamaConfig, name: str, device: str) -> Any:
    """A model in the storage of that name; its dense weights are never made where codes are drawn."""
    form, chain = FORMS.get(name, (None, None)), CHAINS.get(name, ())
    templates: dict[tuple[int, int], PackedWeight] = {}
    torch.manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            bits = form[1] if path == "lm_head" else form[0]
            if path == "lm_head" and config.tie_word_embeddings and bits is None:
                continue
            weight = random_weight((module.out_features, module.in_features), bits, device)
            if chain and path != "lm_head":
                weight = copied(templates, chain, weight)
            if isinstance(weight, Tensor):
                module.weight = nn.Parameter(weight, requires_grad=False)
            else:
                model.set_submodule(path, PackedLinear(weight, dtype=torch.bfloat16))
        elif isinstance(module, nn.Embedding):
            module.weight = nn.Parameter(random_weight(tuple(module.weight.shape), None, device), requires_grad=False)
        elif getattr(module, "weight", None) is not None and module.weight.is_meta and module.weight.ndim == 1:
            module.weight = nn.Parameter(torch.ones_like(module.weight, device=device), requires_grad=False)
    if isinstance(model.lm_head, nn.Linear) and config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def copied(templates: dict[tuple[int, int], PackedWeight], chain: Chain, weight: Tensor) -> PackedWeight:
    """The packed weight of this shape, in memory of its own."""
    shape = tuple(weight.shape)
    if shape not in templates:
        templates[shape] = pack_by(chain, weight)
    own = {key: tensor.clone() for key, tensor in templates[shape].tensors().items()}
    return from_tensors(templates[shape].description(), own)


@torch.no_grad()
def in_float32(model: Any) -> Any:
    """The model with the values of its weights in float32."""
    with torch.device("meta"):
        exact = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    exact.model.rotary_emb = model.model.rotary_emb
    for name, module in exact.named_modules():
        if getattr(module, "weight", None) is not None:
            own = model.get_submodule(name)
            value = own.packed.dequantize() if isinstance(own, PackedLinear) else own.weight.float()
            module.weight = nn.Parameter(value, requires_grad=False)
    return exact
