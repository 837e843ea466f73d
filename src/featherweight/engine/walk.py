"""The walk: block by block, each compressed, run, written and journaled before the next is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from featherweight.data.windows import Windows
from featherweight.engine.block import compress_block
from featherweight.engine.journal import Entry, Journal, check_shard, read_entries
from featherweight.engine.outside import compress_outside, materialize_outside, place_outside, release_outside
from featherweight.engine.phases import Phases
from featherweight.engine.progress import Event
from featherweight.engine.ranks import Ranks
from featherweight.engine.room import check_room
from featherweight.engine.task import BlockTask
from featherweight.models.experts import noting_routing
from featherweight.models.freed import return_freed_memory
from featherweight.models.replay import BlockInputs, capture, head_inputs, override_forwards
from featherweight.models.skeleton import build_skeleton, materialize
from featherweight.models.spill import SpilledStates
from featherweight.packed.base import PackedWeight, from_tensors
from featherweight.packed.files import link, write
from featherweight.packed.linear import dense_cache
from featherweight.packed.placing import place
from featherweight.planning.plan import Plan
from featherweight.statistics.store import StatisticsStore

PROBE_SHAPE = (2, 32)


@dataclass
class Walk:
    """One run of a plan into a folder.

    Attributes:
        plan, output: what and where.
        windows: calibration tokens; None for recipes without data.
        ranks: that walk together; the first reads and writes.
        dtype: in which blocks run.
        store: kept statistics.
        report: progress sink.
        seconds: spent before, by resumed runs of the same output.
    """

    plan: Plan
    output: Path
    windows: Windows | None
    ranks: Ranks
    dtype: torch.dtype
    store: StatisticsStore
    report: Callable[[Event], None]
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        self.device = self.ranks.device
        self.phases = Phases(self.device)
        self.journal = self.ranks.on_first(lambda: Journal.open(self.output, self.identity()))
        self._model = build_skeleton(self.plan.source.config())
        self._shards = self.plan.shard_names()
        self._dense: BlockInputs | None = None
        self.routing: dict[str, Tensor] = {}  # of the probe's tokens

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to go on."""
        tokens = self.windows.sha256 if self.windows else None
        return {**self.plan.identity(), "tokens": tokens, "compute": [self.device.type, str(self.dtype)]}

    def made_from(self, shard: int) -> str:
        """Hash of everything that decides a shard; equal ones are bit-identical."""
        stages = self.plan.stages[: shard + 1]
        tokens = self.windows.sha256 if self.windows and any(map(self.plan.gathers, stages)) else None
        told = [self.plan.lineage(shard + 1), tokens, self.device.type, str(self.dtype)]
        counts = [*(entry.ranks for entry in self.journal.entries[:shard]), self.ranks.count]
        told += [counts] if set(counts) != {1} else []  # sums of another order
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def borrow(self, donors: Sequence[Path]) -> None:
        """Take over the first shards from other outputs, as far as this run would write them alike; files are linked.

        Raises:
            FeatherweightError: a donor's shard that was changed or is gone.
        """
        self.journal.entries = self.ranks.on_first(lambda: self._borrowed(donors))

    def _borrowed(self, donors: Sequence[Path]) -> list[Entry]:
        lent = [(folder, read_entries(folder)) for folder in donors]
        for shard in range(len(self.journal.entries), len(self._shards)):
            key, name = self.made_from(shard), self._shards[shard]
            found = next(((folder, entry) for folder, entries in lent for entry in entries if entry.made_from == key), None)
            if found is None:
                break
            check_shard(found[0] / found[1].shard, found[1].sha256)
            link(found[0] / found[1].shard, self.output / name)
            self.journal.add(replace(found[1], shard=name))
        return self.journal.entries

    @torch.no_grad()
    def run(self) -> tuple[Tensor, Tensor]:
        """Walk to the end; returns the probe's tokens and the logits of the compressed model as it stands in memory."""
        self.ranks.on_first(lambda: check_room(self))
        packed = self._outside()
        probe_tokens = self.probe_tokens()
        inputs = [self._capture(probe_tokens, len(probe_tokens))]
        if self.windows and any(map(self.plan.gathers, self.plan.stages[len(self.journal.entries) :])):
            inputs.append(self._capture(*self.share(self.windows), self._spill))
            if self.plan.recipe.engine.reference == "dense" and self.plan.recipe.engine.inputs == "compressed":
                self._dense = BlockInputs(self._kept(inputs[1].hidden), inputs[1].calls)
        release_outside(self._model, self.plan, packed)
        for shard, block in enumerate(self.plan.structure.blocks, 1):
            materialize(self._model, block, self.plan.weights, self.dtype, self.device)
            self._block(shard, block, inputs)
            self._model.get_submodule(block).to("meta")
            return_freed_memory()
        materialize_outside(self._model, self.plan, packed, self.dtype, self.device)
        if self.plan.head is not None:
            materialize(self._model, self.plan.head.name, self.plan.weights, self.dtype, self.device)
            self._head(len(self._shards) - 1, self.plan.head.name, inputs)
        logits = inputs[0].finish(self._model, inputs[0].hidden[0])
        self._model.to("meta")  # the proof loads the output beside it
        inputs.clear()
        return_freed_memory()
        return probe_tokens, logits.float().cpu()

    def share(self, windows: Windows) -> tuple[Tensor, int]:
        """This rank's calibration tokens and batch size: part of every batch where a method learns step by step, else batches."""
        learns = any(method.tunes for chain in self.plan.chains.linears.values() for method in chain)
        return self.ranks.share(windows.tokens, self.plan.recipe.calibration.batch_size, whole_batches=not learns)

    def probe_tokens(self) -> Tensor:
        """Seeded token ids `[2, 32]` on which the saved model must repeat the logits in memory."""
        vocabulary = self.plan.source.config().get_text_config(decoder=True).vocab_size
        return torch.randint(0, int(vocabulary), PROBE_SHAPE, generator=torch.Generator().manual_seed(self.plan.recipe.seed))

    def _outside(self) -> Collection[str]:
        """Everything outside the blocks in place; returns the names of the packed modules among it."""
        if self.journal.entries:
            packed = self._load(self.journal.entries[0], self._tensors(self.journal.entries[0]))
            self.report(Event("resume", done=len(self.journal.entries) - 1, total=len(self._shards) - 1))
        else:
            packed, measured = compress_outside(self.plan)
            self._write(0, packed, measured)
        place_outside(self._model, self.plan, packed, self.dtype, self.device)
        return tuple(packed)

    def _capture(self, tokens: Tensor, batch_size: int, spill: Path | None = None) -> BlockInputs:
        return capture(self._model, self.plan.structure, tokens.to(self.device), batch_size, spill)

    @property
    def _spill(self) -> Path | None:
        """Folder for activations that are to lie on disk, there by now on every node."""
        if self.plan.recipe.engine.activations == "memory":
            return None
        self.output.mkdir(parents=True, exist_ok=True)
        return self.output

    def _kept(self, states: Iterable[Tensor]) -> list[Tensor] | SpilledStates:
        """States of all batches, beside those that move on."""
        return list(states) if self._spill is None else SpilledStates(self._spill, states)

    def _block(self, shard: int, block: str, inputs: list[BlockInputs]) -> None:
        """A block, and what it makes of its inputs."""
        dense = self.plan.recipe.engine.inputs == "dense"
        outputs = [self._kept(self._forward(part, block)) for part in inputs] if dense else []
        reference = None if self._dense is None else self._kept(self._forward(self._dense, block))
        self._stage(shard, block, inputs[1] if len(inputs) > 1 else None, reference)
        self._advance(inputs, block, outputs)
        if self._dense is not None and reference is not None:
            self._dense.advance(reference)

    def _head(self, shard: int, head: str, inputs: list[BlockInputs]) -> None:
        """The head; while its inputs are looked at, it computes no logits."""
        seen = head_inputs(self._model, inputs[1], head, self._spill) if len(inputs) > 1 else None
        with override_forwards(self._model, {head: lambda hidden: hidden}):
            self._stage(shard, head, seen)

    def _stage(self, shard: int, stage: str, inputs: BlockInputs | None, reference: Sequence[Tensor] | None = None) -> None:
        """Compress and write; or, of a stage that is finished, the same modules and multiplies as in the run that wrote it."""
        if shard < len(self.journal.entries):
            entry = self.journal.entries[shard]
            tensors = self._tensors(entry)
            for name, weight in self._load(entry, tensors).items():
                place(self._model, name, weight, dtype=self.dtype)
            for name in entry.folded:
                self._model.get_parameter(name).copy_(tensors[name])
            return
        result = compress_block(
            BlockTask(
                plan=self.plan,
                model=self._model,
                block=stage,
                inputs=inputs,
                prefix=self._prefix(1 if self.plan.recipe.engine.inputs == "dense" else shard),
                tokens=self.windows.sha256 if self.windows else "",
                store=self.store,
                keep={"none": False, "first": shard == 1, "all": True}[self.plan.recipe.engine.keep_statistics],
                report=self.report,
                dtype=self.dtype,
                reference=reference,
                ranks=self.ranks,
                phases=self.phases,
            )
        )
        self._write(shard, result.packed, result.measured, result.folded)
        self.report(Event("block written", stage, done=shard, total=len(self._shards) - 1))

    def _advance(self, inputs: list[BlockInputs], block: str, dense_outputs: Sequence[Sequence[Tensor]]) -> None:
        """Outputs become the next block's inputs; the probe always sees the compressed block."""
        for index, part in enumerate(inputs):
            keep_dense = bool(dense_outputs) and index > 0
            with noting_routing(self._model, block, self.routing if index == 0 else {}):
                part.advance(dense_outputs[index] if keep_dense else self._forward(part, block))

    def _forward(self, part: BlockInputs, block: str) -> Iterator[Tensor]:
        """What the block makes of each batch, one at a time."""
        with dense_cache(self._model.get_submodule(block), self.dtype):
            for index in range(len(part.hidden)):
                with self.phases.timed("forward"):
                    made = part.run(self._model, block, index)
                yield made

    def _prefix(self, shard: int) -> str:
        """Hash of everything compressed before this shard; "dense" where nothing was."""
        compressed = [entry for entry in self.journal.entries[:shard] if entry.rows]
        if not compressed:
            return "dense"
        return hashlib.sha256("".join(entry.sha256 for entry in compressed).encode()).hexdigest()

    def _load(self, entry: Entry, tensors: Mapping[str, Tensor]) -> dict[str, PackedWeight]:
        packed = {}
        for module, row in entry.rows.items():
            own = {name[len(module) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(module + ".")}
            packed[module] = from_tensors(row["description"], own)
        return packed

    def _tensors(self, entry: Entry) -> dict[str, Tensor]:
        """A finished shard that is needed again, as the first rank reads it."""
        needed = bool(entry.rows or entry.folded) and self.ranks.first
        return self.ranks.exchange(load_file(self.output / entry.shard, device=str(self.device)) if needed else {})[0]

    def _write(
        self,
        shard: int,
        packed: Mapping[str, PackedWeight],
        measured: Mapping[str, dict[str, Any]],
        folded: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write a shard and commit it; all ranks go on together."""
        with self.phases.timed("write"):
            entry = self.ranks.on_first(lambda: self._written(shard, packed, measured, folded or {}))
        if not self.ranks.first:
            self.journal.entries.append(entry)

    def _written(
        self,
        shard: int,
        packed: Mapping[str, PackedWeight],
        measured: Mapping[str, dict[str, Any]],
        folded: Mapping[str, Tensor],
    ) -> Entry:
        rows = [row for row in self.plan.rows if row.block == self.plan.stages[shard]]
        tensors: dict[str, Tensor] = {}
        for row in rows:
            if row.description is None:
                tensors[row.module] = folded[row.module] if row.module in folded else self.plan.weights.read(row.module)
            else:
                tensors.update({f"{row.module}.{name}": tensor for name, tensor in packed[row.module].tensors().items()})
        digest = write(self.output / self._shards[shard], tensors)
        described = {
            module: {"description": weight.description(), "measured": measured[module]} for module, weight in packed.items()
        }
        entry = Entry(self._shards[shard], digest, described, self.made_from(shard), sorted(folded), self.ranks.count)
        self.journal.add(entry)
        return entry
