"""Safetensors files on disk: which belong to a model, what their headers say, whether they are complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from featherweight.errors import FeatherweightError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
SAMPLE = 1 << 20  # bytes at either end of a shard that enter its fingerprint
_HEADER_LIMIT = 100 << 20  # bytes; the safetensors format's own bound

#: safetensors' names of element types, as torch's.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a shard, as its header describes it.

    Attributes:
        shard: the file that holds it.
        dtype: of the stored elements, in safetensors' spelling ("BF16").
        shape: of the tensor.
        nbytes: stored bytes.
        offset: of the first byte, counted from the start of the file.
    """

    shard: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int


def model_shards(folder: Path) -> list[Path]:
    """The safetensors files of the model in `folder`, sorted by name; an index wins over loose files.

    Raises:
        FeatherweightError: the folder holds no safetensors (pickled checkpoints are refused), or its index names files
            that are not there.
    """
    index = folder / INDEX
    if index.is_file():
        return _indexed_shards(index)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise FeatherweightError(
            f"{folder} holds pickled weights only; unpickling can run any code, so they are refused",
            found=", ".join(pickled),
            expected=f"{SINGLE}, or {INDEX} and its shards",
            fix="on a machine you trust, load the folder with transformers and write it again with save_pretrained(folder)",
        )
    loose = sorted(path.name for path in folder.glob("*.safetensors"))
    raise FeatherweightError(
        f"{folder} holds no model weights",
        found=", ".join(loose) or "no *.safetensors file",
        expected=f"{SINGLE}, or {INDEX} and its shards",
        fix=f"fetch the missing {INDEX}" if loose else "download the model again",
    )


def _indexed_shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise FeatherweightError(
            f"{index} is not a safetensors index", found=error, expected="JSON with a 'weight_map'", fix="download it again"
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FeatherweightError(
            f"{index.parent} is half downloaded: its index names {len(missing)} of {len(names)} shards that are not there",
            found="missing " + ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else ""),
            expected=f"every shard that {INDEX} names",
            fix="finish the download, or download the model again",
        )
    return [index.parent / name for name in names]


def read_header(shard: Path) -> dict[str, StoredTensor]:
    """Every tensor of one shard, by its name on disk; reads the header only and checks the file's size against it.

    Raises:
        FeatherweightError: the file is truncated, longer than its header says, or no safetensors file.
    """
    size = shard.stat().st_size
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise _truncated(shard, size, f"a header of {length} bytes")
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            stored = {name: _stored_tensor(shard, entry, 8 + length) for name, entry in entries.items()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise FeatherweightError(
                f"{shard} is not a safetensors file", found=error, expected="a JSON header", fix="download it again"
            ) from error
    end = max((tensor.offset + tensor.nbytes for tensor in stored.values()), default=8 + length)
    if end != size:
        raise _truncated(shard, size, f"{end} bytes, by its header")
    return stored


def _stored_tensor(shard: Path, entry: dict, start: int) -> StoredTensor:
    first, last = entry["data_offsets"]
    return StoredTensor(shard, entry["dtype"], tuple(entry["shape"]), last - first, start + first)


def _truncated(shard: Path, size: int, expected: str) -> FeatherweightError:
    return FeatherweightError(
        f"the shard {shard} is truncated or damaged",
        found=f"{size} bytes",
        expected=expected,
        fix="delete it and download it again",
    )


def read_headers(shards: list[Path]) -> dict[str, StoredTensor]:
    """Every tensor of several shards by its name on disk.

    Raises:
        FeatherweightError: as `read_header`; or two shards hold a tensor of the same name.
    """
    stored: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, tensor in read_header(shard).items():
            if name in stored:
                raise FeatherweightError(
                    f"the tensor {name} is stored twice",
                    found=f"{stored[name].shard.name} and {shard.name}",
                    expected="one shard for each tensor",
                    fix="remove the shard that does not belong to this model",
                )
            stored[name] = tensor
    return stored


def fingerprint(shards: Iterable[Path]) -> str:
    """sha256 over each shard's name, size, header and the first and last MiB of its content."""
    digest = hashlib.sha256()
    for shard in sorted(set(shards)):
        size = shard.stat().st_size
        digest.update(f"{shard.name}\0{size}\0".encode())
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest.update(file.read(length) + file.read(SAMPLE))
            file.seek(max(8 + length, size - SAMPLE))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()
