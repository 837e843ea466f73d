"""Integer weights as the CUDA kernels read them, from the stored tensors and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.kernels.bits import pack, unpack
from featherweight.kernels.cuda.layout import BLOCK, decode_codes, decode_groups, encode_codes, encode_groups

#: Dtypes of scales, as the sources number them.
SCALES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}


@dataclass(frozen=True, eq=False)
class DeviceCodes:
    """An integer weight in the kernels' layout.

    Attributes:
        rows, inputs: of the weight.
        bits: of a code.
        group: inputs that share a scale; 0 for whole rows.
        codes: from `encode_codes`.
        scales, zeros: from `encode_groups`; zeros uint8, or None on a symmetric grid.
    """

    rows: int
    inputs: int
    bits: int
    group: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    @classmethod
    def of(cls, codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, group: int) -> DeviceCodes:
        """From codes `[out, in]` uint8, scales and zeros `[out, groups]`."""
        rows, inputs = codes.shape
        width = group or inputs + BLOCK
        points = None if zeros is None else encode_groups(zeros, width, inputs)
        return cls(rows, inputs, bits, group, encode_codes(codes, bits), encode_groups(scales, width, inputs), points)

    @classmethod
    def from_stored(cls, description: Mapping[str, Any], stored: Mapping[str, Tensor]) -> DeviceCodes:
        """From the description and the stored tensors of a packed weight of kind "integer"."""
        bits, inputs = description["bits"], description["shape"][1]
        zeros = stored.get("zeros")
        points = None if zeros is None else unpack(zeros, bits, description["groups"])
        return cls.of(unpack(stored["codes"], bits, inputs), stored["scales"], points, bits, description["group_size"] or 0)

    def stored(self) -> dict[str, Tensor]:
        """The stored tensors again."""
        groups = -(-self.inputs // self.group) if self.group else 1
        tensors = {
            "codes": pack(decode_codes(self.codes, self.bits, self.rows, self.inputs), self.bits),
            "scales": decode_groups(self.scales, self.rows, groups),
        }
        if self.zeros is not None:
            tensors["zeros"] = pack(decode_groups(self.zeros, self.rows, groups), self.bits)
        return tensors

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the layout."""
        named = {"codes": self.codes, "scales": self.scales, "zeros": self.zeros}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def constants(self) -> dict[str, int]:
        """What the sources want to know of it when they are compiled."""
        return {
            "BITS": self.bits,
            "SCALE": SCALES[self.scales.dtype],
            "ZEROS": int(self.zeros is not None),
            "GROUP": min(self.group or BLOCK, BLOCK),
            "WIDE": max(1, self.group // BLOCK) if self.group else 0,
        }


def reason_against(description: Mapping[str, Any]) -> str:
    """Why the kernels do not read a weight so described; "" if they do."""
    group, inputs = description["group_size"], description["shape"][1]
    if description["bits"] not in (2, 3, 4, 8):
        return f"for codes of 2, 3, 4 or 8 bits, not {description['bits']}"
    if description["group_index"]:
        return "groups follow a group_index, the kernel's are consecutive inputs"
    if inputs % 8:
        return f"for inputs in eights, not {inputs}"
    if group is not None and group not in (32, 64) and group % BLOCK:
        return f"for groups of 32, 64 or whole times 128 inputs, not {group}"
    if group is not None and group > BLOCK and inputs % BLOCK:
        return f"for inputs in whole groups of 128, not {inputs}"
    return ""
