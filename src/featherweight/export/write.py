"""Writing an output of ours in another format, or saying before the first byte why it cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from featherweight.errors import FeatherweightError, nearest
from featherweight.export.base import Format
from featherweight.export.checkpoint import Checkpoint
from featherweight.export.compressed_tensors import VLLM, CompressedTensors
from featherweight.export.dense import DenseValues
from featherweight.export.gguf import GGUF
from featherweight.export.gptq import GPTQ
from featherweight.models.experts import find_experts
from featherweight.models.freed import return_freed_memory
from featherweight.models.structure import is_transposed
from featherweight.packed.base import PackedWeight
from featherweight.packed.files import write, write_text

FORMATS: dict[str, Format] = {each.name: each for each in (CompressedTensors(), VLLM(), GPTQ(), GGUF(), DenseValues())}

#: Bytes of tensors beyond which no weight file grows, but one of a single tensor.
SHARD_BYTES = 4 << 30
#: Bytes from which a weight file is closed where one of the source's ends: what is held at once is one block, not a file of any size.
SMALL_BYTES = 64 << 20


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        format: its name.
        readers: programs that read it.
        files: weight files.
        bytes: of these.
        notes: what the format does not carry over.
    """

    folder: Path
    format: str
    readers: str
    files: list[str]
    bytes: int
    notes: list[str]


def find_format(name: str) -> Format:
    """The format of that name.

    Raises:
        FeatherweightError: there is none.
    """
    if name not in FORMATS:
        raise FeatherweightError(
            "unknown format", found=name, expected=", ".join(FORMATS), fix=f"did you mean {nearest(name, FORMATS, 1)[0]}?"
        )
    return FORMATS[name]


def export(folder: str | Path, name: str, output: str | Path) -> Exported:
    """Write the output in `folder` in the format `name` into the empty or new folder `output`.

    Codes and scales are carried over bit for bit. Nothing is written before every module is known to be expressible;
    config.json comes last, so that what a crash leaves behind does not load.

    Raises:
        FeatherweightError: an unknown format, modules that it cannot express (all reasons at once), an output folder in use,
            or too small a disk.
    """
    target, folder, output = find_format(name), Path(folder), Path(output)
    source = Checkpoint.open(folder, as_stored=target.name == "dense")
    modules = [(name, told, _kind(source.module(name))) for name, told in source.modules.items()]
    target.check_model(source.skeleton.config)
    refuse(target, reasons(target, modules, tuple(find_experts(source.skeleton))))
    section = target.section(source.modules, source.unpacked_linears())
    _prepare(output, source)
    files = target.write(source, output) if isinstance(target, GGUF) else _write_shards(source, target, output)
    for path in source.folder.iterdir():
        if path.name.startswith(("tokenizer", "special_tokens", "generation_config", "chat_template", "vocab", "merges")):
            shutil.copyfile(path, output / path.name)
    told = {"dtype": str(source.dtype).removeprefix("torch."), **({"quantization_config": section} if section else {})}
    config = {**source.config, **told}
    write_text(output / "config.json", json.dumps(config, indent=2))
    size = sum((output / file).stat().st_size for file in files)
    return Exported(output, target.name, target.readers, files, size, _notes(source, target))


def reasons(
    target: Format, modules: Iterable[tuple[str, Mapping[str, Any], str]], experts: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Why the format cannot express some of the modules, each reason with their names; empty where it can express all.

    Args:
        modules: name, description, and what it is: "linear", "head", "embedding", ...
        experts: module paths of mixtures of experts.
    """
    found: dict[str, list[str]] = {}
    if experts and not target.experts:
        found["a mixture of experts, which the format is not written for here"] = list(experts)
    for module, description, kind in modules:
        reason = target.refusal(module, description)
        if reason is None and target.linears_only and kind not in ("linear", "head"):
            reason = f"a packed {kind}; the format packs linears"
        if reason:
            found.setdefault(reason, []).append(module)
    return found


def refuse(target: Format, found: Mapping[str, list[str]]) -> None:
    """Raise if there are reasons, with all of them."""
    if found:
        told = [f"{reason}: {names[0]}" + f" and {len(names) - 1} more" * (len(names) > 1) for reason, names in found.items()]
        raise FeatherweightError(
            f"{target.name} cannot express this", found="; ".join(told), expected="storages that the format has",
            fix="export dense, or compress with integer codes of 4 or 8 bits (`fw plan MODEL --for` tells before a run)",
        )  # fmt: skip


def _kind(module: nn.Module) -> str:
    return "linear" if isinstance(module, nn.Linear) else type(module).__name__.lower()


def _prepare(output: Path, source: Checkpoint) -> None:
    if output.exists() and any(output.iterdir()):
        raise FeatherweightError("the folder is in use", found=str(output), expected="a new or empty folder")
    output.mkdir(parents=True, exist_ok=True)
    dense = sum(parameter.numel() * source.dtype.itemsize for parameter in source.skeleton.parameters())
    stored = sum(shard.stat().st_size for shard in source.shards)
    free, most = shutil.disk_usage(output).free, max(dense, stored)
    if free < most:
        raise FeatherweightError(
            "the disk may be too small", found=f"{free:,} bytes free", expected=f"{most:,}, the dense size"
        )


def _write_shards(source: Checkpoint, target: Format, output: Path) -> list[str]:
    """Files, and their index."""
    placed: dict[str, str] = {}
    files: list[str] = []
    total = 0
    for held in _parts(source, target):
        files.append(f"model-{len(files) + 1:05d}.safetensors")
        write(output / files[-1], held)
        placed.update(dict.fromkeys(held, files[-1]))
        total += sum(tensor.nbytes for tensor in held.values())
        held.clear()  # before the next is made
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    write_text(output / "model.safetensors.index.json", json.dumps(index, indent=1))
    return files


def _converted(source: Checkpoint, target: Format, shard: Path) -> Iterator[tuple[str, Tensor]]:
    for name, stored in source.weights([shard]):
        if not isinstance(stored, PackedWeight):
            yield name, stored.to(source.dtype) if stored.is_floating_point() else stored
            continue
        for full_name, tensor in target.tensors(name, stored, source.dtype).items():
            yield full_name, tensor.T if is_transposed(source.module(name)) else tensor


def _fused(source: Checkpoint, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors with the experts of each mixture, once all are there, as transformers holds them."""
    banks = {path: experts.layout for path, experts in find_experts(source.skeleton).items()}
    owner = {f"{path}.{name}": path for path, layout in banks.items() for name in layout.cuts()}
    waiting: dict[str, dict[str, Tensor]] = {path: {} for path in banks}
    for name, tensor in tensors:
        path = owner.get(name)
        if path is None:
            yield name, tensor
            continue
        held = waiting[path]
        held[name.removeprefix(f"{path}.")] = tensor
        if len(held) == len(banks[path].cuts()):
            yield from ((f"{path}.{fused}", whole) for fused, whole in banks[path].fuse(waiting.pop(path)).items())
    assert not any(waiting.values())  # a file holds whole blocks


def _parts(source: Checkpoint, target: Format) -> Iterator[dict[str, Tensor]]:
    held: dict[str, Tensor] = {}
    size = 0
    for shard in source.shards:
        for name, tensor in _fused(source, _converted(source, target, shard)):
            if held and size + tensor.nbytes > SHARD_BYTES:
                yield held
                held, size = {}, 0
            held[name], size = tensor, size + tensor.nbytes
        if size >= SMALL_BYTES:
            yield held
            held, size = {}, 0
            return_freed_memory()
    if held:
        yield held


def _notes(source: Checkpoint, target: Format) -> list[str]:
    notes = []
    if any(description["kind"] == "masked" for description in source.modules.values()):
        notes.append("dropped weights are stored as zeros: no other format here holds a mask")
    told = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    if told.get("kv_cache"):
        notes.append("the compressed KV cache stays behind: it belongs to our loader")
    if target.name == "dense":
        notes.append(f"values are rounded to {source.dtype}")
    elif source.dtype != source.stored_dtype:
        notes.append(f"what is not packed goes from {source.stored_dtype} to {source.dtype}, the dtype of the scales")
    return notes
