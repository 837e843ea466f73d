"""Coupled structured pruning: whole MLP channels and whole blocks go, and what is written is an ordinary checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.engine.compress import windows_for
from featherweight.engine.progress import Event, silent
from featherweight.engine.shrunk_checkpoint import Smaller, write_checkpoint
from featherweight.engine.verify import compare_logits
from featherweight.errors import FeatherweightError
from featherweight.models.axis import PERMUTATION, Axis
from featherweight.models.producers import find_all_producers
from featherweight.models.replay import BlockInputs, capture
from featherweight.models.skeleton import build_skeleton, materialize
from featherweight.models.source import ModelSource
from featherweight.models.structure import Structure, find_structure
from featherweight.models.weights import Weights, open_weights
from featherweight.packed.files import write_text
from featherweight.planning.recipe import Calibration
from featherweight.solvers.refit import absorb_dropped
from featherweight.statistics.collector import Collector

REPORT = "shrink.json"
PROBE_SHAPE = (2, 32)


@dataclass(frozen=True)
class Shrunk:
    """What was made of a model.

    Attributes:
        folder: an ordinary checkpoint.
        parameters: before and after.
        channels: of every MLP, before and after.
        removed: blocks that are gone, by their old paths.
        influence: of every old block, how far it turns its input (1 − cosine); empty where no block was to go.
        largest_difference: of the reloaded logits from those in memory, relative.
        seconds: of the call.
    """

    folder: Path
    parameters: tuple[int, int]
    channels: tuple[int, int]
    removed: tuple[str, ...]
    influence: dict[str, float]
    largest_difference: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**vars(self), "folder": str(self.folder)}


@dataclass
class _Run:
    """The model on its way through."""

    source: ModelSource
    model: Any
    structure: Structure
    weights: Weights
    axes: dict[str, Axis]
    device: torch.device
    repair: bool
    changed: dict[str, Tensor] = field(default_factory=dict)


def shrink(
    source: ModelSource,
    output: Path,
    *,
    mlp: float = 0.0,
    blocks: int = 0,
    calibration: Calibration | None = None,
    repair: bool = True,
    device: str = "cpu",
    offline: bool = False,
    report: Callable[[Event], None] = silent,
) -> Shrunk:
    """Remove MLP channels and blocks; uniform widths, so that `AutoModelForCausalLM.from_pretrained` loads the result.

    A channel's score is what it adds to the block's output, `E[x_j²] ‖w_down,j‖²`; the least go, in every block as many. With
    `repair` the others make up for them by least squares on the calibration data (`absorb_dropped`). Blocks that turn their
    inputs least go (Men et al. 2024, arXiv:2403.03853). Statistics are taken behind what was pruned before.

    Args:
        source: a dense model.
        output: new or empty folder.
        mlp: fraction of the MLP channels of every block that goes, rounded down.
        blocks: number of blocks that go.
        calibration: tokens; 128 windows of the shipped sample if not given.
        device: where blocks run, in float32.

    Raises:
        FeatherweightError: nothing to do or nothing left; a family without MLP channels that can go, or whose config has no
            setting for its width; a saved model that does not repeat its logits.
    """
    started = time.perf_counter()
    run, smaller = _prepare(source, output, mlp, blocks, torch.device(device), repair)
    wanted = calibration or Calibration()
    text = source.config().get_text_config(decoder=True)
    wanted = wanted if wanted.length else wanted.model_copy(update={"length": min(2048, text.max_position_embeddings)})
    tokens = windows_for(source, wanted, offline=offline).tokens
    probe = torch.randint(0, text.vocab_size, PROBE_SHAPE, generator=torch.Generator().manual_seed(0))
    logits, influence, kept = _walk(run, smaller, blocks, (tokens, probe), wanted.batch_size, report)
    smaller = replace(smaller, kept=kept)
    parameters = write_checkpoint(source, output, smaller, run.weights, run.changed)
    proof = compare_logits(logits, _reloaded(output, probe), torch.float32)
    width = next(iter(run.axes.values())).size if mlp else 0
    removed = tuple(block for block in run.structure.blocks if block not in kept)
    seconds, difference = time.perf_counter() - started, proof["largest_difference"]
    result = Shrunk(output, parameters, (width, smaller.channels), removed, influence, difference, seconds)
    write_text(output / REPORT, json.dumps(result.as_dict(), indent=1))
    return result


def _walk(
    run: _Run,
    smaller: Smaller,
    blocks: int,
    tokens: tuple[Tensor, Tensor],
    batch_size: int,
    report: Callable[[Event], None],
) -> tuple[Tensor, dict[str, float], tuple[str, ...]]:
    """Prune block by block; returns the probe's logits, the influence of every block, and the blocks that stay.

    Args:
        blocks: how many go.
        tokens: of the calibration and of the probe.
    """
    with torch.no_grad():
        _place_outside(run)
        sizes = (batch_size, len(tokens[1]))
        inputs, probed = (
            capture(run.model, run.structure, ids.to(run.device), size) for ids, size in zip(tokens, sizes, strict=True)
        )
        influence = _influence(run, inputs, report) if blocks else {}
        removed = sorted(influence, key=lambda block: influence[block])[:blocks]
        kept = tuple(block for block in run.structure.blocks if block not in removed)
        for done, block in enumerate(kept):
            materialize(run.model, block, run.weights, torch.float32, run.device)
            if run.axes:
                _narrow(run, block, smaller.channels, inputs)
            for part in (inputs, probed):
                part.advance([part.run(run.model, block, index) for index in range(len(part.hidden))])
            run.model.get_submodule(block).to("meta")
            report(Event("block done", block, done=done + 1, total=len(kept)))
        return probed.finish(run.model, probed.hidden[0]).float().cpu(), influence, kept


def _prepare(
    source: ModelSource, output: Path, mlp: float, blocks: int, device: torch.device, repair: bool
) -> tuple[_Run, Smaller]:
    """Everything that can be refused before a weight is read; which blocks go is not known yet, only how many."""
    config = source.config()
    model = build_skeleton(config)
    structure = find_structure(model)
    _check(structure, output, mlp, blocks)
    axes = {block: _channels(found) for block, found in find_all_producers(model, structure).items()} if mlp else {}
    width = next(iter(axes.values())).size if mlp else 0
    smaller = Smaller(structure, structure.blocks[: len(structure.blocks) - blocks], axes, width - int(width * mlp))
    smaller.settings(config)
    return _Run(source, model, structure, open_weights(source.folder, model), axes, device, repair), smaller


def _check(structure: Structure, output: Path, mlp: float, blocks: int) -> None:
    if not 0 <= mlp < 1 or not 0 <= blocks < len(structure.blocks) or (not mlp and not blocks):
        raise FeatherweightError(
            "there is nothing to prune" if not mlp and not blocks else "this would empty the model",
            found=f"{mlp} of the MLP channels, {blocks} of {len(structure.blocks)} blocks",
            expected="less than all, and something",
            fix="use --mlp 0.25, or --blocks 1",
        )
    if output.exists() and any(output.iterdir()):
        raise FeatherweightError("the folder is in use", found=str(output), expected="a new or empty folder")


def _channels(axes: tuple[Axis, ...]) -> Axis:
    """The axis of a block whose columns are made by rows of earlier linears, each by its own: MLP channels."""
    for axis in axes:
        free = axis.groups is None and axis.shared is None and PERMUTATION in axis.admits
        if free and len(axis.consumers) == 1 and all(producer.kind == "linear" for producer in axis.producers):
            return axis
    raise FeatherweightError(
        f"no MLP channels that can go in {axes[0].block if axes else 'a block'}",
        found=", ".join(f"{axis.name}: {', '.join(sorted(axis.admits)) or 'nothing'}" for axis in axes),
        expected="an axis between two linears that may be permuted",
        fix="use the method structured, which keeps the model's shapes",
    )


def _place_outside(run: _Run) -> None:
    inside = tuple(block + "." for block in run.structure.blocks)
    modules = {name.rpartition(".")[0] for name in run.model.state_dict() if not name.startswith(inside)}
    for module in sorted(modules):
        materialize(run.model, module, run.weights, torch.float32, run.device)
    for owner in run.model.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.device.type != "meta":
                owner.register_buffer(name, buffer.to(run.device), persistent=name not in owner._non_persistent_buffers_set)


def _influence(run: _Run, inputs: BlockInputs, report: Callable[[Event], None]) -> dict[str, float]:
    """`1 − mean cos(input, output)` over tokens of every block of the dense model; `inputs` stays at the first block."""
    first, found = list(inputs.hidden), {}
    for block in run.structure.blocks:
        materialize(run.model, block, run.weights, torch.float32, run.device)
        outputs = [inputs.run(run.model, block, index) for index in range(len(inputs.hidden))]
        pairs = zip(inputs.hidden, outputs, strict=True)
        cosines = torch.cat([nn.functional.cosine_similarity(before, after, dim=-1).flatten() for before, after in pairs])
        found[block] = 1 - float(cosines.mean())
        inputs.advance(outputs)
        run.model.get_submodule(block).to("meta")
        report(Event("influence", block, detail=f"{found[block]:.4f}"))
    inputs.advance(first)
    return found


def _narrow(run: _Run, block: str, left: int, inputs: BlockInputs) -> None:
    """Drop channels of one block, in memory and for the file, until so many are left."""
    axis = run.axes[block]
    collector = Collector({axis.name: axis.consumers[0]}, {axis.name: frozenset({"hessian"})}, torch.float32)
    with collector.attached(run.model):
        for index in range(len(inputs.hidden)):
            inputs.run(run.model, block, index)
    hessian, count = collector.sums[axis.name].mean_hessian(), collector.sums[axis.name].count
    reader = run.structure.linear(axis.consumers[0])
    weight = reader.read(run.model)
    scores = hessian.diagonal() * weight.square().sum(0)
    kept = scores.argsort(descending=True, stable=True)[:left].sort().values
    narrow = absorb_dropped(weight, kept, hessian, 0.01, name=reader.name, samples=count) if run.repair else weight[:, kept]
    _replace(run, reader.name, narrow, reader.bias_of(run.model))
    rows_of: dict[str, list[Tensor]] = {}
    for producer in axis.producers:
        rows = kept if producer.rows is None else torch.tensor(producer.rows, device=kept.device)[kept]
        rows_of.setdefault(producer.name, []).append(rows)
    for name, several in rows_of.items():
        linear, rows = run.structure.linear(name), torch.cat(several).sort().values
        bias = linear.bias_of(run.model)
        _replace(run, linear.name, linear.read(run.model)[rows], None if bias is None else bias[rows])


def _replace(run: _Run, name: str, weight: Tensor, bias: Tensor | None) -> None:
    """Put smaller values in a linear's place, rounded as they will be stored."""
    linear = run.structure.linear(name)
    stored = weight.to(run.weights.dtype(linear.weight_name))
    run.changed[linear.weight_name] = (stored.t() if linear.transposed else stored).contiguous().cpu()
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    module.weight = nn.Parameter(stored.to(torch.float32), requires_grad=False)
    if bias is not None:
        run.changed[f"{name}.bias"] = bias.to(run.weights.dtype(f"{name}.bias")).cpu()
        module.bias = nn.Parameter(bias, requires_grad=False)
    linear.replace(run.model, module)


def _reloaded(folder: Path, tokens: Tensor) -> Tensor:
    """Logits of the checkpoint as transformers loads it, with no plug-in of ours taking part."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits.float()
