"""What `test_ranks.py` starts on two ranks: exchanges whose results are known, then whole runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import featherweight as fw
from common import TINY
from featherweight.engine.block_run import _share_gradients, _summed
from featherweight.engine.merging import merge_statistics
from featherweight.engine.ranks import Ranks
from featherweight.errors import FeatherweightError
from featherweight.statistics.inputs import KINDS, InputStatistics

#: In one block ratios are learned on its outputs, in another maps are drawn and folded; the others stay as they are.
RECIPE = {
    "steps": [
        {"method": "besa", "scope": "model.layers.0.*"},
        {"method": "awq", "scope": "model.layers.1.*"},
        {"method": "gptq", "scope": "model.layers.[01].*", "bits": 4, "group_size": 128},
    ]
}
INPUTS = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))


def statistics(ranks: Ranks) -> dict[str, float]:
    """Largest differences from one pass over all inputs, at the owner and where all own."""
    whole = InputStatistics.from_inputs(INPUTS, KINDS, torch.float64)
    found = {}
    for name, owners in (("one", [1]), ("all", [0, 1])):
        mine = InputStatistics.from_inputs(INPUTS.tensor_split(2)[ranks.rank], KINDS, torch.float64)
        merged = merge_statistics(ranks, {"axis": mine}, {"axis": owners})["axis"]
        assert merged.count == whole.count
        if ranks.rank not in owners:
            assert not merged.tensors()
            continue
        assert merged.hessian is not None and torch.equal(merged.hessian, merged.hessian.T)
        parts = merged.tensors()
        found[name] = max(float((parts[kind] - each).abs().max()) for kind, each in whole.tensors().items())
    return {name: value for told in ranks.gather(found) for name, value in told.items()}


def gradients(ranks: Ranks) -> float:
    """Largest difference of a gradient of a loss over both ranks' inputs from that over all."""
    weight = torch.ones(8, 8, requires_grad=True)

    def loss(inputs: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return _summed(ranks, (inputs @ matrix.T).square().flatten(0, -2).sum(0)).sqrt().sum() + weight.square().sum()

    loss(INPUTS.tensor_split(2)[ranks.rank], _share_gradients(ranks, {"weight": weight})["weight"]).backward()
    shared, weight.grad = weight.grad, None
    ((INPUTS @ weight.T).square().flatten(0, -2).sum(0).sqrt().sum() + weight.square().sum()).backward()
    assert shared is not None and weight.grad is not None
    return float((shared - weight.grad).abs().max() / weight.grad.abs().max())


def main(folder: Path) -> None:
    found: dict[str, object] = {}
    with Ranks.started(torch.device("cpu")) as ranks:
        found |= {"statistics": statistics(ranks), "gradients": gradients(ranks)}
        for name, work in {
            "disagreement": lambda: ranks.agree({"recipe": f"of {ranks.rank}", "model": "alike"}),
            "error": lambda: ranks.on_first(lambda: fw.verify(folder)),
        }.items():
            try:
                work()
            except FeatherweightError as problem:
                found[name] = ranks.gather(problem.as_dict())
    for run in ("first", "second"):
        fw.compress(fw.plan("demo", RECIPE, changes=TINY), folder / run, device="cpu", statistics=folder / "statistics")
    if ranks.first:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
