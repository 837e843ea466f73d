"""A checkpoint's tensors under the model's own names, read one at a time."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError, nearest
from featherweight.models.experts import separate_experts
from featherweight.models.places import Place, fused_places, spelled
from featherweight.models.shards import DTYPES, SAMPLE, StoredTensor, fingerprint, model_shards, read_headers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


#: What an output's `quantization_config` names as its recipe where `fw shrink --per-layer` wrote it.
PER_LAYER = "fw shrink --per-layer"

#: The `quant_method` of checkpoints whose experts are 4-bit floats under a power of two for every 32 (gpt-oss).
MXFP4 = "mxfp4"


class Weights(ABC):
    """The stored tensors of one model, named as in `model.state_dict()`; tied ones answer to all their names, and are listed
    once.

    Two implementations: `LazyWeights` reads each tensor from its shard; `LoadedWeights` lets transformers load the whole
    checkpoint (on the CPU, in the stored dtype) where names on disk are none that are known here.
    """

    def __init__(
        self, folder: Path, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor], first: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self._shapes = dict(shapes)
        self._first = dict(first)
        self._stored = dict(stored)
        self._sizes = {tensor.shard: tensor.shard.stat().st_size for tensor in stored.values()}

    def names(self) -> list[str]:
        """Module-tree names in the model's order."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor; raises FeatherweightError for an unknown name."""
        return self._shapes[self._listed(name)]

    def total_bytes(self) -> int:
        """Bytes of all tensors on disk, without the headers."""
        return sum(tensor.nbytes for tensor in self._stored.values())

    def fingerprint(self) -> str:
        """sha256 over each shard's name, size, header and the first and last MiB of its content.

        Cheap on purpose: it tells one checkpoint from another, and does not prove every byte.
        """
        return fingerprint(tensor.shard for tensor in self._stored.values())

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype of one tensor."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor on the CPU in its stored dtype.

        Raises:
            FeatherweightError: unknown name, a truncated shard, or a parameter that is not stored as floating point.
        """

    def _listed(self, name: str) -> str:
        """The name under which a tensor is listed."""
        if name not in self._first:
            raise FeatherweightError(
                f"{self.folder} has no tensor for {name!r}", found=name, expected=", ".join(nearest(name, self._shapes))
            )
        return self._first[name]


class LazyWeights(Weights):
    """One tensor at a time from its shard, an expert of a 3-D tensor by its slice alone; nothing is kept."""

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        stored: Mapping[str, StoredTensor],
        first: Mapping[str, str],
        places: Mapping[str, Place],
        floating: frozenset[str],
    ) -> None:
        super().__init__(folder, shapes, stored, first)
        self._places = dict(places)
        self._floating = floating

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype of one tensor; raises FeatherweightError for a parameter that is not stored as floating point."""
        name = self._listed(name)
        stored = self._stored[self._places[name].disk]
        dtype = self._places[name].decoded or DTYPES.get(stored.dtype)
        if dtype is None or (name in self._floating and not dtype.is_floating_point):
            raise FeatherweightError(
                f"the tensor {name} is not stored as floating point, so this checkpoint is quantized already",
                found=f"{stored.dtype} in {stored.shard.name}",
                expected="float32, float16 or bfloat16",
                fix="start from the uncompressed checkpoint",
            )
        return dtype

    def read(self, name: str) -> Tensor:
        """See `Weights.read`."""
        self.dtype(name)
        return self._places[self._listed(name)].read(self._part)

    def _part(self, disk: str, index: int | None) -> Tensor:
        """What is stored by a name, or one slice of it."""
        from safetensors import safe_open

        stored = self._stored[disk]
        size = stored.shard.stat().st_size if stored.shard.is_file() else 0
        if size != self._sizes[stored.shard]:
            raise FeatherweightError(
                f"the shard {stored.shard} is truncated, changed or gone since it was opened",
                found=f"{size} bytes",
                expected=f"{self._sizes[stored.shard]} bytes",
                fix="leave the folder alone during a run; download the model again",
            )
        with safe_open(str(stored.shard), framework="pt", device="cpu") as file:
            tensor: Tensor = file.get_tensor(disk) if index is None else file.get_slice(disk)[index]
        return tensor


class LoadedWeights(Weights):
    """The checkpoint as transformers loads it, on first use; costs memory for the whole model."""

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        stored: Mapping[str, StoredTensor],
        first: Mapping[str, str],
        model_class: type[PreTrainedModel],
        config: Any,
    ) -> None:
        super().__init__(folder, shapes, stored, first)
        self._class, self._config = model_class, config
        self._tensors: dict[str, Tensor] | None = None

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of one tensor as loaded; loads the checkpoint on first use."""
        return self.read(name).dtype

    def read(self, name: str) -> Tensor:
        """See `Weights.read`; loads the checkpoint on first use."""
        listed = self._listed(name)
        if self._tensors is None:
            self._tensors = self._load()
        return self._tensors[listed]

    def _load(self) -> dict[str, Tensor]:
        import copy

        model, report = self._class.from_pretrained(
            self.folder,
            config=copy.deepcopy(self._config),
            dtype=_stored_dtype(self._stored),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        problems = {kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        if any(problems.values()):
            raise _mismatch(self.folder, problems["missing_keys"] + problems["mismatched_keys"], problems["unexpected_keys"])
        if self._shapes.keys() - model.state_dict().keys():
            separate_experts(model)
        return {name: tensor.detach() for name, tensor in model.state_dict().items() if name in self._shapes}


def open_weights(folder: Path, model: PreTrainedModel) -> Weights:
    """The weights in `folder` under the names of `model` (a skeleton will do); headers are checked, no data is read.

    Names on disk may lack the model's base prefix (`h.0` for `transformer.h.0`) or carry it where the model has none; experts
    may be stored one by one or as 3-D tensors, also in MXFP4, which is decoded. Where names differ on both sides still, the
    checkpoint is left to transformers (`LoadedWeights`).

    Raises:
        FeatherweightError: a checkpoint that is quantized already; truncated or missing shards; tensors missing, unexpected
            or of another shape; tied tensors that are stored twice with different values.
    """
    refuse_quantized(folder, model.config)
    stored = read_headers(model_shards(folder))
    aliases = tied_names(model)
    state = model.state_dict(keep_vars=True)
    shapes = {name: tuple(state[name].shape) for name in aliases}
    first = {alias: name for name, names in aliases.items() for alias in names}
    prefix = f"{model.base_model_prefix}."
    places: dict[str, Place] = {}
    used: set[str] = set()
    fused = fused_places(model)
    for name, names in aliases.items():
        wanted = [Place(alias, shapes[name]) for alias in names]
        found = spelled(wanted, stored, prefix) or spelled(fused.get(name, ()), stored, prefix)
        places |= dict.fromkeys([name], found[0]) if found else {}
        used.update(disk for place in found for disk in place.names)
        _check_duplicates(folder, [stored[place.disk] for place in found], names)
    missing = [name for name in aliases if name not in places]
    ignored = re.compile("|".join(f"(?:{rule})" for rule in _ignored_rules(model)) or r"(?!)")
    unexpected = [disk for disk in stored if disk not in used and not ignored.search(disk)]
    if missing and unexpected:
        return LoadedWeights(folder, shapes, stored, first, type(model), model.config)
    wrong = {name: place for name, place in places.items() if stored[place.disk].shape != place.shape}
    if missing or unexpected or wrong:
        sizes = [f"{name} {list(stored[place.disk].shape)}, not {list(place.shape)}" for name, place in wrong.items()]
        raise _mismatch(folder, missing + sizes, unexpected)
    floating = frozenset(name for name in aliases if state[name].is_floating_point())
    return LazyWeights(folder, shapes, stored, first, places, floating)


def tied_names(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """Every parameter and persistent buffer once, by its first name, with all the names it goes by."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(first.setdefault(id(tensor), name), []).append(name)
    return {name: tuple(all_names) for name, all_names in names.items()}


def _ignored_rules(model: PreTrainedModel) -> list[str]:
    rules = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    return [*sorted(rules), r"rotary_emb\.inv_freq$"]


def refuse_quantized(folder: Path, config: Any) -> None:
    """Raise FeatherweightError for the config of a checkpoint that is quantized already, but for experts in MXFP4, which are read."""
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        settings = settings if isinstance(settings, dict) else vars(settings)
        method = settings.get("quant_method")
        if str(method) == MXFP4:
            return
        if settings.get("recipe") == PER_LAYER:
            raise FeatherweightError(
                f"the model in {folder} has other widths in every block",
                found=f"an output of {PER_LAYER}, which a config does not describe",
                expected="an ordinary checkpoint",
                fix="shrink the original again without --per-layer: recipes go on from that",
            )
        raise FeatherweightError(
            f"the model in {folder} is quantized already",
            found=f"quantization_config with method {method}",
            expected="a checkpoint in float32, float16 or bfloat16",
            fix="start from the uncompressed checkpoint",
        )


def _check_duplicates(folder: Path, tensors: list[StoredTensor], names: tuple[str, ...]) -> None:
    samples = set()
    for tensor in tensors if len(tensors) > 1 else ():
        with tensor.shard.open("rb") as file:
            file.seek(tensor.offset)
            head = file.read(min(SAMPLE, tensor.nbytes))
            file.seek(tensor.offset + max(0, tensor.nbytes - SAMPLE))
            samples.add((tensor.dtype, tensor.shape, head, file.read(min(SAMPLE, tensor.nbytes))))
    if len(samples) > 1:
        raise FeatherweightError(
            f"{folder} ties {' and '.join(names)}, but stores them with different values",
            expected="one tensor, or equal ones",
            fix='write "tie_word_embeddings": false into config.json',
        )


def _stored_dtype(stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """The floating dtype that most stored bytes have."""
    counts: dict[torch.dtype, int] = {}
    for tensor in stored.values():
        dtype = DTYPES.get(tensor.dtype)
        if dtype is not None and dtype.is_floating_point:
            counts[dtype] = counts.get(dtype, 0) + tensor.nbytes
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


def _mismatch(folder: Path, missing: list[str], unexpected: list[str]) -> FeatherweightError:
    def some(names: list[str]) -> str:
        return ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "")

    return FeatherweightError(
        f"the tensors in {folder} are not those of the model that its config.json describes",
        found=f"unexpected: {some(unexpected)}" if unexpected else "no unexpected tensors",
        expected=some(missing),
        fix="check that config.json and the weights belong together; download the model again",
    )
