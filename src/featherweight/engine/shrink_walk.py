"""The walk of a shrink: block by block, each ranked, cut, run, written and journaled before the next is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from featherweight.data.windows import Windows
from featherweight.engine.journal import Entry, Journal
from featherweight.engine.progress import Event
from featherweight.engine.ranking import Ranking, choose, score_units
from featherweight.engine.shrink_task import Task
from featherweight.engine.shrunk_checkpoint import BlockFile, shard_names, weight_of
from featherweight.engine.smaller import Smaller
from featherweight.models.replay import BlockInputs, capture
from featherweight.models.skeleton import materialize
from featherweight.models.units import CHANNELS, Units, stays
from featherweight.packed.files import write
from featherweight.solvers.refit import absorb_dropped
from featherweight.statistics.collector import Collector

#: λ of the repair, relative to the mean diagonal of the kept part of the Hessian.
DAMPING = 0.01


@dataclass
class ShrinkWalk:
    """One run of a task into a folder.

    Inside the walk a block keeps its shapes: the columns of what goes are zero in their reader. Files hold the small tensors.

    Attributes:
        task, output: what and where.
        windows: calibration tokens.
        batch_size: of these.
        device: where blocks run, in float32.
        report: progress sink.
        smaller: what stays; its blocks and widths are settled once the model is ranked.
        ranking: of the dense model; empty if neither blocks nor widths need it.
        journal: which files are finished.
    """

    task: Task
    output: Path
    windows: Windows
    batch_size: int
    device: torch.device
    report: Callable[[Event], None]
    smaller: Smaller = field(init=False)
    ranking: Ranking = field(init=False)
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        identity = {"tokens": self.windows.sha256, "batch_size": self.batch_size, "compute": self.device.type}
        self.journal = Journal.open(self.output, {**self.task.identity(), **identity})
        self.ranking, self.smaller = Ranking.open(self.output), self.task.smaller

    @torch.no_grad()
    def run(self, probe: Tensor) -> Tensor:
        """Walk to the end; returns the logits of the pruned model in memory on the tokens `probe`."""
        task, model = self.task, self.task.model
        self._place_outside()
        inputs = [self._capture(self.windows.tokens, self.batch_size), self._capture(probe, len(probe))]
        if task.cut.blocks or task.cut.per_layer:
            self._rank(inputs[0])
            self._settle()
        shards = shard_names(len(self.smaller.kept))
        if self.journal.entries:
            self.report(Event("resume", done=len(self.journal.entries) - 1, total=len(shards) - 1))
        else:
            self._write(shards[0], BlockFile(task.weights, self.smaller, "", task.cut.per_layer, {}, {}), {})
        for done, block in enumerate(self.smaller.kept, 1):
            materialize(model, block, task.weights, torch.float32, self.device)
            if done < len(self.journal.entries):
                self._restore(self.journal.entries[done], block)
            else:
                self._narrow(shards[done], block, inputs[0])
                self.report(Event("block written", block, done=done, total=len(shards) - 1))
            for part in inputs:
                part.advance([part.run(model, block, index) for index in range(len(part.hidden))])
            model.get_submodule(block).to("meta")
        return inputs[1].finish(model, inputs[1].hidden[0]).float().cpu()

    def _capture(self, tokens: Tensor, batch_size: int) -> BlockInputs:
        return capture(self.task.model, self.task.structure, tokens.to(self.device), batch_size)

    def _place_outside(self) -> None:
        model, inside = self.task.model, tuple(f"{block}." for block in self.task.structure.blocks)
        modules = {name.rpartition(".")[0] for name in model.state_dict() if not name.startswith(inside)}
        for module in sorted(modules):
            materialize(model, module, self.task.weights, torch.float32, self.device)
        for owner in model.modules():
            for name, buffer in owner.named_buffers(recurse=False):
                if buffer.device.type != "meta":
                    persistent = name not in owner._non_persistent_buffers_set
                    owner.register_buffer(name, buffer.to(self.device), persistent=persistent)

    def _rank(self, inputs: BlockInputs) -> None:
        """Run the dense model once; `inputs` stays at the first block."""
        model, first = self.task.model, list(inputs.hidden)
        for block in self.task.structure.blocks:
            if len(self.ranking.influence) == len(self.task.structure.blocks):
                break
            materialize(model, block, self.task.weights, torch.float32, self.device)
            known = block in self.ranking.influence
            wanted = self.task.cut.per_layer and not known
            units = tuple(each for each in self.smaller.units[block] if each.kind == CHANNELS and wanted)
            before = list(inputs.hidden)
            hessians, outputs = self._hessians(block, units, inputs)
            if not known:
                scores = [score_units(each, self._reader(each), hessians[each.kind][0]) for each in units]
                self.ranking.add(block, before, outputs, scores[0] if scores else torch.empty(0))
                self.ranking.write(self.output)
                self.report(Event("ranked", block, detail=f"influence {self.ranking.influence[block]:.4f}"))
            inputs.advance(outputs)
            model.get_submodule(block).to("meta")
        inputs.advance(first)

    def _settle(self) -> None:
        """Which blocks stay, and how wide."""
        removed = self.ranking.least(self.task.cut.blocks)
        kept = tuple(block for block in self.task.structure.blocks if block not in removed)
        drop = self.smaller.drop
        if self.task.cut.per_layer:
            shared = self.ranking.share(self.task.cut.mlp, kept)
            drop = {block: {**drop[block], CHANNELS: gone} for block, gone in shared.items()}
        self.smaller = replace(self.smaller, kept=kept, drop=drop)

    def _reader(self, units: Units) -> Tensor:
        return self.task.structure.linear(units.reader).read(self.task.model)

    def _hessians(
        self, block: str, units: tuple[Units, ...], inputs: BlockInputs
    ) -> tuple[dict[str, tuple[Tensor, int]], list[Tensor]]:
        """By kind, the mean Hessian of the reader's input and its tokens; and the block's outputs."""
        watched = {each.kind: each.reader for each in units}
        collector = Collector(watched, dict.fromkeys(watched, frozenset({"hessian"})), torch.float32)
        with collector.attached(self.task.model):
            outputs = [inputs.run(self.task.model, block, index) for index in range(len(inputs.hidden))]
        return {kind: (sums.mean_hessian(), sums.count) for kind, sums in collector.sums.items()}, outputs

    def _narrow(self, shard: str, block: str, inputs: BlockInputs) -> None:
        """Cut one block, in memory and in its file; heads first, so that channels are chosen behind them."""
        changed: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}
        for units in self.smaller.units[block]:
            hessian, count = self._hessians(block, (units,), inputs)[0][units.kind]
            weight = self._reader(units)
            kept[units.kind] = choose(units, score_units(units, weight, hessian), self.smaller.drop[block][units.kind])
            columns = stays(units.columns, kept[units.kind]).to(weight.device)
            narrow = weight[:, columns]
            if self.task.cut.repair and len(columns) < weight.shape[1]:
                narrow = absorb_dropped(weight, columns, hessian, DAMPING, name=units.reader, samples=count)
            linear = self.task.structure.linear(units.reader)
            narrow = narrow.to(self.task.weights.dtype(linear.weight_name))
            changed[linear.weight_name] = (narrow.t() if linear.transposed else narrow).contiguous().cpu()
            self._zero(units, columns, narrow)
        file = BlockFile(self.task.weights, self.smaller, block, self.task.cut.per_layer, kept, changed)
        rows = {units.kind: {"kept": _bits(kept[units.kind], units.count)} for units in self.smaller.units[block]}
        self._write(shard, file, rows)

    def _zero(self, units: Units, columns: Tensor, narrow: Tensor) -> None:
        """Give the reader these values in `columns`, and zeros elsewhere."""
        weight = self._reader(units)
        weight.zero_()
        weight[:, columns] = narrow.to(weight.device, weight.dtype)

    def _restore(self, entry: Entry, block: str) -> None:
        """A finished block as it was in the run that wrote it."""
        tensors = load_file(self.output / entry.shard)
        for units in self.smaller.units[block]:
            kept = torch.tensor([bit == "1" for bit in entry.rows[units.kind]["kept"]]).nonzero().flatten()
            linear = self.task.structure.linear(units.reader)
            narrow = weight_of(tensors, self.smaller, linear, packed=self.task.cut.per_layer)
            self._zero(units, stays(units.columns, kept).to(self.device), narrow)

    def _write(self, shard: str, file: BlockFile, rows: dict[str, dict[str, Any]]) -> None:
        self.journal.add(Entry(shard, write(self.output / shard, file.tensors()), rows))


def _bits(kept: Tensor, count: int) -> str:
    """One character for each unit, 1 where it stays."""
    left = set(kept.tolist())
    return "".join("1" if unit in left else "0" for unit in range(count))
