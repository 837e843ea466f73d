"""Files of tensors: their size before they exist, and writing that a crash cannot leave half done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from featherweight.errors import FeatherweightError
from featherweight.packed.base import Layout

METADATA = {"format": "pt"}

#: Names of dtypes in a file's header, in the order in which safetensors lays tensors out, last first.
_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0", torch.int16: "I16", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32",
    torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip


def file_bytes(layout: Layout) -> int:
    """Exact size of the safetensors file that `write` makes of such tensors: 8 bytes, the padded header, the data."""
    rank = {dtype: index for index, dtype in enumerate(_NAMES)}
    header: dict[str, object] = {"__metadata__": METADATA}
    offset = 0
    for name in sorted(layout, key=lambda name: (-rank[layout[name][1]], name)):
        shape, dtype = layout[name]
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + offset


def layout_of_tensors(tensors: Mapping[str, Tensor]) -> Layout:
    """Names, shapes and dtypes of tensors in hand."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write `tensors` so that `path` appears whole or not at all; returns the file's sha256.

    Raises:
        FeatherweightError: the disk is full or the folder cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, partial, metadata=METADATA)
        return commit(partial, path)
    except Exception as problem:
        partial.unlink(missing_ok=True)
        if isinstance(problem, FeatherweightError):
            raise
        raise _unwritable(path, problem) from None


def write_text(path: Path, text: str) -> None:
    """Write `text` so that `path` appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        commit(partial, path, hashed=False)
    except OSError as problem:
        raise _unwritable(path, problem) from None


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where the file system has no links; whole or not at all.

    Raises:
        FeatherweightError: the disk is full or the folder cannot be written.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
        commit(partial, target, hashed=False)
    except OSError as problem:
        raise _unwritable(target, problem) from None


def commit(partial: Path, path: Path, *, hashed: bool = True) -> str:
    """Flush `partial` to the disk and rename it to `path`; returns its sha256 if asked, found while the disk is busy."""
    partial.chmod(0o644)
    with ThreadPoolExecutor(1) as pool, partial.open("rb+") as file:
        found = pool.submit(sha256, partial) if hashed else None
        os.fsync(file.fileno())
        digest = found.result() if found is not None else ""
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return digest


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unwritable(path: Path, problem: Exception) -> FeatherweightError:
    return FeatherweightError(
        "the output cannot be written",
        found=f"{path}: {problem}",
        expected="a writable folder with room for the whole output (`fw plan` prints its bytes)",
        fix="free space or choose another output; run the same command again and it goes on from the last finished block",
    )
