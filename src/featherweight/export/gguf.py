"""GGUF: what llama.cpp and everything on it read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.export.base import Format
from featherweight.export.checkpoint import Checkpoint
from featherweight.export.codes import exactly, is_plain, leaf, no_codes, read_codes, rounds_input
from featherweight.packed.base import PackedWeight

#: Inputs that share a scale in the formats that we write.
BLOCK = 32

#: Architectures by model type, and whether queries and keys are stored in llama.cpp's own order of rotary pairs.
ARCHITECTURES = {"llama": ("llama", True), "mistral": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False)}

FILE = "model.gguf"


class GGUF(Format):
    """Symmetric groups of 32: 4 bits as Q4_0, 8 bits as Q8_0. Q4_1 would round each zero point times its scale."""

    name: ClassVar[str] = "gguf"
    readers: ClassVar[str] = "llama.cpp and what is built on it, transformers (dequantized)"
    linears_only: ClassVar[bool] = False

    def refusal(self, module: str, description: Mapping[str, Any]) -> str | None:
        """Other groups than 32, other widths than 4 and 8, zero points, rounded inputs."""
        if is_plain(description):
            return None
        inner, reason = leaf(description), no_codes(description)
        if reason:
            return reason
        if inner["group_size"] != BLOCK:
            return f"groups of {inner['group_size'] or 'whole rows'}; it has groups of {BLOCK}"
        if inner["bits"] not in (4, 8) or not inner["symmetric"]:
            return f"{inner['bits']}-bit {'symmetric' if inner['symmetric'] else 'asymmetric'} codes have no lossless type"
        return "its readers do not round inputs" if rounds_input(description) else None

    def check_model(self, config: Any) -> None:
        """An architecture or a rotary scaling that is not written here."""
        _architecture(config)

    def tensors(self, module: str, weight: PackedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """Blocks `[out, in / 32 · bytes of a block]` uint8 under the module's own name; plain values as they are."""
        if is_plain(weight.description()):
            return {f"{module}.weight": weight.dequantize(dtype)}
        found = read_codes(weight)
        rows = len(found.codes)
        scales = _half(module, found.scales)
        parts = [scales.view(torch.uint8).reshape(rows, -1, 2)]
        codes = found.codes.reshape(rows, -1, BLOCK)
        if found.bits == 8:
            parts.append((codes.to(torch.int16) - 128).to(torch.int8).view(torch.uint8))
        else:
            parts.append(codes[..., :16] | (codes[..., 16:] << 4))
        return {f"{module}.weight": torch.cat(parts, -1).reshape(rows, -1)}

    def section(self, modules: Mapping[str, Mapping[str, Any]], others: tuple[str, ...]) -> None:
        """None: the file tells."""
        return

    def write(self, source: Checkpoint, output: Path) -> list[str]:
        """One file with weights, settings and tokenizer.

        Raises:
            FeatherweightError: the `gguf` package is missing; an architecture, a rotary scaling or a tokenizer not known here.
        """
        try:
            import gguf
        except ImportError as problem:
            raise FeatherweightError(
                "writing GGUF needs the gguf package", found=str(problem), fix="pip install 'featherweight[formats]'"
            ) from None
        config = source.skeleton.config
        architecture, _ = _architecture(config)
        partial = output / f"{FILE}.partial"
        writer = gguf.GGUFWriter(partial, architecture)
        _tell_settings(writer, config)
        _tell_tokenizer(writer, source.folder, config)
        for name, values, kind in self._named(source, gguf):
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values, _ in self._named(source, gguf):  # made again: one tensor is held at a time
            writer.write_tensor_data(values)
        writer.close()
        partial.replace(output / FILE)
        return [FILE]

    def _named(self, source: Checkpoint, gguf: Any) -> Iterator[tuple[str, Any, Any]]:
        """llama.cpp's name, bytes or values, and type of every tensor."""
        config = source.skeleton.config
        architecture, reordered = _architecture(config)
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        names, types = gguf.get_tensor_name_map(arch, config.num_hidden_layers), gguf.GGMLQuantizationType
        for module, stored in source.weights():
            packed = isinstance(stored, PackedWeight)
            found = self.tensors(module, stored, source.dtype) if isinstance(stored, PackedWeight) else {module: stored}
            for name, tensor in found.items():
                told = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if told is None:
                    raise FeatherweightError("llama.cpp has no name for a tensor", found=name, expected=architecture)
                if reordered and (".q_proj." in name or ".k_proj." in name):
                    heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
                    tensor = _reorder(tensor, heads)
                if packed and not is_plain(stored.description()):
                    yield told, tensor.numpy(), types.Q8_0 if leaf(stored.description())["bits"] == 8 else types.Q4_0
                elif tensor.ndim == 2 and tensor.dtype != torch.float32:
                    halves = tensor.contiguous().view(torch.uint8).numpy()
                    yield told, halves, types.BF16 if tensor.dtype == torch.bfloat16 else types.F16
                else:
                    yield told, tensor.to(torch.float32).numpy(), types.F32


def _half(module: str, values: Tensor) -> Tensor:
    cast = exactly(values, torch.float16)
    if cast is None:
        raise FeatherweightError(
            f"the scales of {module} do not fit float16, which GGUF's blocks hold",
            found=f"{values.dtype}", expected="scales that float16 holds exactly", fix="compress with float16 scales",
        )  # fmt: skip
    return cast.contiguous()


def _reorder(tensor: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys from halves of a head (`rotate_half`) to neighbouring pairs."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape).contiguous()


def _architecture(config: Any) -> tuple[str, bool]:
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if config.model_type not in ARCHITECTURES or rope != "default":
        raise FeatherweightError(
            "this architecture is not written as GGUF",
            found=f"{config.model_type}, rotary positions of type {rope}",
            expected=f"{', '.join(ARCHITECTURES)} with plain rotary positions",
            fix="export compressed-tensors or dense, and convert that with llama.cpp's own script",
        )
    return ARCHITECTURES[config.model_type]


def _tell_settings(writer: Any, config: Any) -> None:
    heads = config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)


def _tell_tokenizer(writer: Any, folder: Path, config: Any) -> None:
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    model = told.get("model", {})
    splitting = _splitting(told, config)
    if model.get("type") != "BPE" or splitting is None:
        raise FeatherweightError(
            "this tokenizer is not written as GGUF",
            found=f"{model.get('type', 'no tokenizer.json')}, {json.dumps(told.get('pre_tokenizer'))[:120]}",
            expected="byte-level BPE that splits as GPT-2, SmolLM, Llama 3 or Qwen 2 do",
            fix="export dense, and convert that with llama.cpp's own script",
        )
    added = {entry["id"]: entry for entry in told.get("added_tokens", [])}
    by_id = {index: token for token, index in model["vocab"].items()} | {
        index: entry["content"] for index, entry in added.items()
    }
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(config.vocab_size)]
    # types of tokens: 1 normal, 3 control, 4 user-defined, 5 unused
    kinds = [
        (3 if added[index].get("special") else 4) if index in added else (1 if index in by_id else 5)
        for index in range(config.vocab_size)
    ]  # fmt: skip
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types(numpy.array(kinds, dtype=numpy.int32).tolist())
    writer.add_token_merges(merges)
    for name, tell in (("bos_token_id", writer.add_bos_token_id), ("eos_token_id", writer.add_eos_token_id)):
        token = getattr(config, name, None)
        token = token[0] if isinstance(token, list) else token
        if token is not None:
            tell(token)
    writer.add_add_bos_token(False)


def _splitting(told: Mapping[str, Any], config: Any) -> str | None:
    """llama.cpp's name for how text is cut before merging."""
    steps = told.get("pre_tokenizer") or {}
    kinds = [step["type"] for step in steps.get("pretokenizers", [steps]) if step]
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    if config.model_type in ("qwen2", "qwen3"):
        return "qwen2"
    return "llama-bpe" if config.vocab_size == 128256 else None
