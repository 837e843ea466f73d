"""Tiny random models, one for each way that a decoder can be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from featherweight.models.experts import separate_experts

COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
FALCON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE: dict[str, Any] = {**COMMON, "head_dim": 8, "num_experts_per_tok": 2}

#: name -> (transformers model type, config settings)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", COMMON),
    "llama-tied-bias": ("llama", {**COMMON, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "opt-125m": ("opt", OPT),
    "opt-350m": ("opt", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "mistral": ("mistral", {**COMMON, "sliding_window": 4}),
    "qwen2": ("qwen2", COMMON),
    "qwen3": ("qwen3", {**COMMON, "head_dim": 8}),
    "gemma2": ("gemma2", {**COMMON, "head_dim": 8, "sliding_window": 4}),
    "gemma3": (
        "gemma3_text",
        {**COMMON, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": ("phi3", COMMON),
    "gpt2": (
        "gpt2",
        {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "falcon-7b": ("falcon", {**FALCON, "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False}),
    "falcon-40b": ("falcon", {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "bloom": ("bloom", {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gpt-neox": ("gpt_neox", COMMON),
    "mixtral": ("mixtral", {**COMMON, "num_local_experts": 4}),
    "qwen2-moe": ("qwen2_moe", {**MOE, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}),
    "qwen3-moe": ("qwen3_moe", {**MOE, "num_experts": 4, "moe_intermediate_size": 16}),
    "olmoe": ("olmoe", {**MOE, "num_experts": 4, "intermediate_size": 16}),
    "gpt-oss": ("gpt_oss", {**MOE, "num_local_experts": 4, "sliding_window": 4}),
}
EXPERTS = frozenset({"mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "gpt-oss"})


def make_config(family: str) -> Any:
    """The config of one family."""
    from transformers import AutoConfig

    model_type, settings = FAMILIES[family]
    return AutoConfig.for_model(model_type, **settings)


def make_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, separate: bool = False) -> Any:
    """A model of one family with random weights, biases and norms; experts run one by one, so that float64 works.

    Args:
        separate: have them as linears.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = make_config(family)
    if family in EXPERTS:
        config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.15
            offset = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape, dtype=torch.float64).to(dtype))
    if separate:
        separate_experts(model)
    return model.requires_grad_(False)


def save_model(family: str, folder: Path, **settings: Any) -> Any:
    """Write a random model of one family to `folder` and return it."""
    model = make_model(family)
    model.save_pretrained(folder, **settings)
    return model


def some_tokens(samples: int = 3, length: int = 9) -> torch.Tensor:
    """Token ids `[samples, length]`, always the same; none is special."""
    return torch.randint(5, 97, (samples, length), generator=torch.Generator().manual_seed(7))
