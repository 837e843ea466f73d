"""Checkpoints that others quantized, read as packed weights: GPTQ, AWQ, compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.export.int32 import WIDTHS, unpacked
from featherweight.models.shards import model_shards
from featherweight.packed.base import PackedWeight
from featherweight.packed.integer import Integer
from featherweight.packed.rounded_input import RoundedInput

#: Tensor whose presence tells that a module is quantized, and that of its scales.
_MARKS = {"gptq": ("qweight", "scales"), "awq": ("qweight", "scales"), "compressed-tensors": ("weight_scale", "weight_scale")}

#: Column of each of the eight nibbles of a word in AWQ's layout.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Scheme:
    """How every quantized linear of a checkpoint is stored.

    Attributes:
        method: "gptq", "awq" or "compressed-tensors".
        bits: of a code.
        group_size: inputs that share a scale; None for whole rows.
        symmetric: whether the zero point is `2^(bits−1)` everywhere.
        indexed: whether groups follow the order in which columns were solved (`desc_act`).
        shifted: whether stored zero points are one too small (GPTQ's v1).
        rounds_input: whether inputs are rounded to 8 bits, token by token.
    """

    method: str
    bits: int
    group_size: int | None
    symmetric: bool
    indexed: bool = False
    shifted: bool = False
    rounds_input: bool = False


@dataclass(frozen=True)
class Foreign:
    """A folder with such a checkpoint.

    Attributes:
        folder: where it lies.
        config: its config.json without the quantization.
        scheme: of its linears.
    """

    folder: Path
    config: Mapping[str, Any]
    scheme: Scheme

    @classmethod
    def open(cls, folder: Path) -> Foreign:
        """Read the configuration.

        Raises:
            FeatherweightError: no such checkpoint, or one with several schemes, other widths or another layout.
        """
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        section = config.pop("quantization_config", None) or {}
        reader = {"gptq": _gptq_scheme, "awq": _awq_scheme, "compressed-tensors": _compressed_scheme}.get(
            str(section.get("quant_method"))
        )
        if reader is None:
            raise FeatherweightError(
                "no quantized checkpoint that can be imported", expected=", ".join(_MARKS),
                found=f"{folder}: {section.get('quant_method') or ('not quantized' if config else 'no config.json')}",
                fix="`fw compress` takes dense checkpoints as they are" if config else "check the path",
            )  # fmt: skip
        scheme = reader(section)
        if scheme.bits not in WIDTHS:
            raise FeatherweightError("codes of this width are not imported", found=f"{scheme.bits} bits", expected="2, 4 or 8")
        return cls(folder, config, scheme)

    @cached_property
    def where(self) -> dict[str, Path]:
        """The file of every tensor."""
        found: dict[str, Path] = {}
        for shard in model_shards(self.folder):
            with safe_open(shard, framework="pt") as file:
                found.update(dict.fromkeys(file.keys(), shard))
        return found

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The quantized linears."""
        mark = f".{_MARKS[self.scheme.method][0]}"
        return tuple(name.removesuffix(mark) for name in self.where if name.endswith(mark))

    @cached_property
    def scale_dtype(self) -> torch.dtype:
        """Of the scales."""
        return self._tensor(f"{self.modules[0]}.{_MARKS[self.scheme.method][1]}").dtype

    def owned(self) -> set[str]:
        """Names of the tensors that belong to quantized linears, their biases left out."""
        prefixes = tuple(f"{module}." for module in self.modules)
        return {name for name in self.where if name.startswith(prefixes) and not name.endswith(".bias")}

    def first_file(self, module: str) -> Path:
        """The file that holds the linear's scales."""
        return self.where[f"{module}.{_MARKS[self.scheme.method][1]}"]

    def describe(self, shape: tuple[int, int]) -> dict[str, Any]:
        """Description of a linear of this shape as it will be stored."""
        scheme = self.scheme
        inner = Integer.describe(shape, scheme.bits, scheme.group_size, scheme.symmetric, self.scale_dtype, scheme.indexed)
        return RoundedInput.describe(inner) if scheme.rounds_input else inner

    def read(self, module: str) -> PackedWeight:
        """One linear, its codes and scales bit for bit.

        Raises:
            FeatherweightError: the checkpoint does not hold it quantized, or not as its configuration says.
        """
        if module not in self.modules:
            raise FeatherweightError(
                f"the checkpoint does not hold {module} quantized", found=f"{len(self.modules)} quantized linears in {self.folder}",
                expected="only linears that it quantizes in the step's scope", fix="narrow the step's `scope`",
            )  # fmt: skip
        reader = {"gptq": self._gptq, "awq": self._awq, "compressed-tensors": self._compressed}[self.scheme.method]
        return reader(module)

    def _tensor(self, name: str) -> Tensor:
        if name not in self.where:
            raise FeatherweightError("the checkpoint lacks a tensor", found=f"no {name}", expected=f"in {self.folder}")
        with safe_open(self.where[name], framework="pt") as file:
            return file.get_tensor(name)

    def _gptq(self, module: str) -> PackedWeight:
        scheme, get = self.scheme, lambda part: self._tensor(f"{module}.{part}")
        codes = unpacked(get("qweight").T, scheme.bits)
        zeros = unpacked(get("qzeros"), scheme.bits).T
        zeros = (zeros + int(scheme.shifted)) & (2**scheme.bits - 1)
        size = scheme.group_size or codes.shape[1]
        index = get("g_idx") if f"{module}.g_idx" in self.where else None
        if not scheme.indexed and index is not None and not torch.equal(index, torch.arange(len(index)) // size):
            raise self._otherwise(module, "groups are not consecutive", "desc_act: true")
        return self._integer(module, codes, get("scales").T, zeros, index if scheme.indexed else None)

    def _awq(self, module: str) -> PackedWeight:
        def columns(part: str) -> Tensor:
            found = unpacked(self._tensor(f"{module}.{part}"), 4).unflatten(-1, (-1, 8))
            return torch.empty_like(found).index_copy_(-1, torch.tensor(_AWQ_ORDER), found).flatten(-2)

        scales = self._tensor(f"{module}.scales").T
        return self._integer(module, columns("qweight").T, scales, columns("qzeros").T, None)

    def _compressed(self, module: str) -> PackedWeight:
        scheme, scales = self.scheme, self._tensor(f"{module}.weight_scale")
        if f"{module}.weight" in self.where:
            codes = (self._tensor(f"{module}.weight").to(torch.int16) + 128).to(torch.uint8)
        else:
            rows, inputs = self._tensor(f"{module}.weight_shape").tolist()
            codes = unpacked(self._tensor(f"{module}.weight_packed"), scheme.bits)[:rows, :inputs]
        if scheme.symmetric:
            return self._integer(module, codes, scales, torch.full_like(codes[:1, :1], 2 ** (scheme.bits - 1)), None)
        zeros = unpacked(self._tensor(f"{module}.weight_zero_point").T, scheme.bits).T[: len(codes)]
        return self._integer(module, codes, scales, zeros, None)

    def _integer(self, module: str, codes: Tensor, scales: Tensor, zeros: Tensor, index: Tensor | None) -> PackedWeight:
        scheme = self.scheme
        if scheme.symmetric and bool((zeros != 2 ** (scheme.bits - 1)).any()):
            raise self._otherwise(module, "zero points differ", "a symmetric grid")
        kept = None if scheme.symmetric else zeros
        packed = Integer.from_codes(codes.contiguous(), scales, kept, scheme.bits, scheme.group_size, index)
        return RoundedInput(packed) if scheme.rounds_input else packed

    def _otherwise(self, module: str, found: str, expected: str) -> FeatherweightError:
        return FeatherweightError(f"{module} is not stored as config.json says", found=found, expected=expected)


def _size(given: int | None) -> int | None:
    return given if given and given > 0 else None


def _gptq_scheme(section: Mapping[str, Any]) -> Scheme:
    if section.get("dynamic"):
        raise FeatherweightError("several settings in one checkpoint", found="`dynamic` rules", expected="one for all linears")
    shifted = section.get("checkpoint_format", "gptq") != "gptq_v2"
    size, sym = _size(section.get("group_size")), bool(section.get("sym", True))
    return Scheme("gptq", int(section["bits"]), size, sym, bool(section.get("desc_act")), shifted)


def _awq_scheme(section: Mapping[str, Any]) -> Scheme:
    version = str(section.get("version", "gemm")).lower()
    if version != "gemm" or not section.get("zero_point", True):
        raise FeatherweightError("this layout of AWQ is not imported", found=version, expected="gemm, with zero points")
    return Scheme("awq", int(section.get("bits", section.get("w_bit", 4))), _size(section.get("group_size")), False)


def _compressed_scheme(section: Mapping[str, Any]) -> Scheme:
    groups = list(section.get("config_groups", {}).values())
    layout = section.get("format")
    if len(groups) != 1 or layout not in ("pack-quantized", "int-quantized"):
        raise FeatherweightError(
            "this compressed-tensors checkpoint is not imported", found=f"{len(groups)} config groups, format {layout}",
            expected="one config group, pack-quantized or int-quantized",
        )  # fmt: skip
    weights, inputs = groups[0]["weights"], groups[0].get("input_activations")
    if (
        weights["type"] != "int"
        or weights["strategy"] not in ("group", "channel")
        or weights.get("actorder") in ("group", "dynamic")
    ):
        raise FeatherweightError("codes of this kind are not imported", found=str(weights), expected="int by group or channel")
    size = weights.get("group_size") if weights["strategy"] == "group" else None
    return Scheme("compressed-tensors", weights["num_bits"], _size(size), weights["symmetric"], rounds_input=inputs is not None)
