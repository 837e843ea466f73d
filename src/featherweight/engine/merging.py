"""What the ranks found, made one: statistics on the ranks that need them, compressed linears on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from featherweight.engine.ranks import Ranks
from featherweight.methods.base import Compressed
from featherweight.packed.base import from_tensors
from featherweight.statistics.inputs import InputStatistics


def merge_statistics(
    ranks: Ranks, found: Mapping[str, InputStatistics], owners: Mapping[str, Sequence[int]]
) -> dict[str, InputStatistics]:
    """Statistics over the tokens of all ranks, by axis; where an axis has other owners, only how many tokens there were.

    Sums are added and maxima taken by one reduction to the axis's owner (to several over the lowest of them); samples are put one
    after the other in the order of ranks.
    """
    if ranks.count == 1:
        return dict(found)
    counts = ranks.gather({axis: each.count for axis, each in found.items()})
    merged = {}
    for axis, each in found.items():
        tensors = {
            kind: ranks.reduce_(tensor.to(ranks.device), owners[axis], maximum=kind == "abs_max")
            for kind, tensor in each.tensors().items()
            if kind != "samples"
        }
        if each.samples is not None:
            told = [told["samples"] for told in ranks.exchange({"samples": each.samples})]
            tensors["samples"] = torch.cat([samples for samples in told if len(samples)] or told[:1])
        total = InputStatistics.from_tensors(sum(count[axis] for count in counts), tensors)
        merged[axis] = total.finished() if ranks.rank in owners[axis] else InputStatistics(total.count)
    return merged


def merge_compressed(ranks: Ranks, own: Mapping[str, Compressed]) -> dict[str, Compressed]:
    """The linears that all ranks compressed; those of others are made from their tensors, as they would be from a file."""
    told = ranks.gather({name: (each.weight.description(), dict(each.facts)) for name, each in own.items()})
    tensors = {f"{name}/{part}": tensor for name, each in own.items() for part, tensor in each.weight.tensors().items()}
    merged = dict(own)
    for rank, (described, sent) in enumerate(zip(told, ranks.exchange(tensors), strict=True)):
        for name, (description, facts) in described.items() if rank != ranks.rank else ():
            parts = {key.removeprefix(f"{name}/"): each for key, each in sent.items() if key.startswith(f"{name}/")}
            merged[name] = Compressed(from_tensors(description, parts), facts)
    return merged
