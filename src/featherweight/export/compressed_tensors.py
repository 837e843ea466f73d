"""compressed-tensors: what vLLM and transformers read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.export.base import Format
from featherweight.export.codes import exactly, is_plain, leaf, no_codes, read_codes, rounds_input
from featherweight.export.int32 import WIDTHS, words
from featherweight.packed.base import PackedWeight


class CompressedTensors(Format):
    """Integer codes as `pack-quantized`; W8A8 as `int-quantized`, its inputs rounded token by token.

    Dropped weights are zeros among the codes: the format has no masks any more, so they take their bits.
    """

    name: ClassVar[str] = "compressed-tensors"
    readers: ClassVar[str] = "vLLM, transformers with compressed-tensors"

    def refusal(self, module: str, description: Mapping[str, Any]) -> str | None:
        """Other widths than 2, 4 and 8 (that of 3 bits changed between releases), no embeddings."""
        if is_plain(description):
            return None
        inner, reason = leaf(description), no_codes(description)
        if reason:
            return reason
        if inner["bits"] not in WIDTHS:
            return f"{inner['bits']}-bit codes: their layout differs between releases of the format"
        if rounds_input(description) and not _is_w8a8(description):
            return "only 8-bit weights with one scale a row can have their inputs rounded, to 8-bit integers"
        return None

    def tensors(self, module: str, weight: PackedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """`weight_packed`, `weight_scale`, `weight_shape` and `weight_zero_point`; of W8A8 `weight` and `weight_scale`."""
        if is_plain(weight.description()):
            return {f"{module}.weight": weight.dequantize(dtype)}
        found = read_codes(weight)
        scales = exactly(found.scales, dtype)
        if scales is None:
            raise FeatherweightError(
                f"the scales of {module} do not fit the model's dtype", found=str(found.scales.dtype), expected=str(dtype),
                fix="compress with one dtype for all scales",
            )  # fmt: skip
        if _is_w8a8(weight.description()):
            signed = (found.codes.to(torch.int16) - 128).to(torch.int8)
            return {f"{module}.weight": signed, f"{module}.weight_scale": scales}
        tensors = {
            f"{module}.weight_packed": words(found.codes, found.bits),
            f"{module}.weight_scale": scales,
            f"{module}.weight_shape": torch.tensor(found.codes.shape, dtype=torch.int64),
        }
        if found.zeros is not None:
            tensors[f"{module}.weight_zero_point"] = words(found.zeros.T, found.bits).T
        return tensors

    def section(self, modules: Mapping[str, Mapping[str, Any]], others: tuple[str, ...]) -> dict[str, Any]:
        """One group of modules for each scheme."""
        schemes: dict[str, tuple[dict[str, Any], list[str]]] = {}
        plain = [module for module, description in modules.items() if is_plain(description)]
        for module, description in modules.items():
            if module not in plain:
                scheme = _scheme(description)
                schemes.setdefault(str(scheme), (scheme, []))[1].append(module)
        formats = {scheme["format"] for scheme, _ in schemes.values()}
        groups = {
            f"group_{index}": {"targets": ["Linear"] if len(schemes) == 1 else names, **scheme}
            for index, (scheme, names) in enumerate(schemes.values())
        }
        return {
            "quant_method": "compressed-tensors",
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "ignore": sorted([*others, *plain]),
            "config_groups": groups,
        }


class VLLM(CompressedTensors):
    """compressed-tensors as far as vLLM has kernels for it."""

    name: ClassVar[str] = "vllm"
    readers: ClassVar[str] = "vLLM"

    def refusal(self, module: str, description: Mapping[str, Any]) -> str | None:
        """As the format's, and no 2-bit codes."""
        reason = super().refusal(module, description)
        if reason is None and not is_plain(description) and leaf(description)["bits"] == 2:
            return "2-bit codes; vLLM has kernels for 4 and 8"
        return reason


def _is_w8a8(description: Mapping[str, Any]) -> bool:
    inner = leaf(description)
    whole = inner["kind"] == "integer" and inner["bits"] == 8 and inner["group_size"] is None and inner["symmetric"]
    return rounds_input(description) and whole and (description["input_bits"], description["input_grid"]) == (8, "integer")


def _scheme(description: Mapping[str, Any]) -> dict[str, Any]:
    inner = leaf(description)
    grouped = inner["group_size"] is not None
    weights = {
        "num_bits": inner["bits"], "type": "int", "symmetric": inner["symmetric"], "dynamic": False,
        "strategy": "group" if grouped else "channel", **({"group_size": inner["group_size"]} if grouped else {}),
    }  # fmt: skip
    tokens = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    w8a8 = _is_w8a8(description)
    return {
        "format": "int-quantized" if w8a8 else "pack-quantized", "weights": weights,
        "input_activations": tokens if w8a8 else None, "output_activations": None,
    }  # fmt: skip
