"""GPTQ's own checkpoints."""

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


class GPTQ(Format):
    """`qweight`, `qzeros`, `scales`, `g_idx`; symmetric grids as v1, whose stored zero points are one too small, others as v2."""

    name: ClassVar[str] = "gptq"
    readers: ClassVar[str] = "vLLM (4 and 8 bits, symmetric), transformers with gptqmodel"

    def refusal(self, module: str, description: Mapping[str, Any]) -> str | None:
        """Other widths than 2, 4 and 8, rounded inputs, sizes that do not fill words."""
        if is_plain(description):
            return None
        inner, reason = leaf(description), no_codes(description)
        if reason:
            return reason
        per_word = 32 // inner["bits"] if inner["bits"] in WIDTHS else 0
        if not per_word:
            return f"{inner['bits']}-bit codes; it has 2, 4 and 8"
        if rounds_input(description):
            return "its readers do not round inputs"
        if any(size % per_word for size in inner["shape"]):
            return f"{inner['shape'][0]} x {inner['shape'][1]} does not fill words of {per_word} codes"
        return None

    def tensors(self, module: str, weight: PackedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """Codes packed along the inputs, transposed; scales as float16."""
        if is_plain(weight.description()):
            return {f"{module}.weight": weight.dequantize(dtype)}
        found = read_codes(weight)
        scales = exactly(found.scales, torch.float16)
        if scales is None:
            raise FeatherweightError(
                f"the scales of {module} do not fit float16, which GPTQ's checkpoints hold",
                found=f"{found.scales.dtype}, {float(found.scales.min()):.3g} to {float(found.scales.max()):.3g}",
                expected="scales that float16 holds exactly", fix="export compressed-tensors instead",
            )  # fmt: skip
        groups, inputs = scales.shape[1], found.codes.shape[1]
        fixed = torch.full((groups, len(scales)), 2 ** (found.bits - 1) - 1, dtype=torch.uint8)
        zeros = fixed if found.zeros is None else found.zeros.T.contiguous()
        return {
            f"{module}.qweight": words(found.codes, found.bits).T,
            f"{module}.qzeros": words(zeros, found.bits),
            f"{module}.scales": scales.T,
            f"{module}.g_idx": torch.arange(inputs, dtype=torch.int32) // (found.group_size or inputs),
        }

    def section(self, modules: Mapping[str, Mapping[str, Any]], others: tuple[str, ...]) -> dict[str, Any]:
        """One width, group size and kind of zero point for all modules, and every linear of the blocks among them."""
        packed = {module: leaf(description) for module, description in modules.items() if not is_plain(description)}
        schemes = {(inner["bits"], inner["group_size"], inner["symmetric"]) for inner in packed.values()}
        left = sorted(name for name in {*others, *modules} - packed.keys() if ".layers." in f".{name}")
        if len(schemes) != 1 or left:
            raise FeatherweightError(
                "GPTQ's checkpoints hold one width and group size for all linears of the blocks",
                found=f"not packed: {', '.join(left[:3])}" if left else f"bits, groups, symmetric: {sorted(map(str, schemes))}",
                expected="one setting for every linear", fix="export compressed-tensors, or compress all linears alike",
            )  # fmt: skip
        bits, group_size, symmetric = schemes.pop()
        return {
            "quant_method": "gptq", "bits": bits, "group_size": group_size or -1, "desc_act": False, "sym": symmetric,
            "lm_head": "lm_head" in packed, "checkpoint_format": "gptq" if symmetric else "gptq_v2", "pack_dtype": "int32",
        }  # fmt: skip
