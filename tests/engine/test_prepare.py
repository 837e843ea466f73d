"""Maps of inputs: folded or beside the weights, the model computes what it did; steps after them work in the new coordinates."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import featherweight as fw
from featherweight.methods.base import Compressed, Method, Problem
from featherweight.methods.block_run import BlockRun
from featherweight.methods.registry import METHODS
from featherweight.models.axis import DIAGONAL, ORTHOGONAL, PERMUTATION, Axis
from featherweight.models.draw import draw_transform
from featherweight.models.transforms import Diagonal, Transform
from featherweight.planning.plan import Plan

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from families import save_model, some_tokens


@dataclass(frozen=True)
class Drawn(Method):
    """A random map of every input, and nothing else."""

    name: ClassVar[str] = "drawn-diagonal"
    summary: ClassVar[str] = "for tests"

    @property
    def prepares(self) -> bool:
        return True

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        return dict(current)

    def prepare(self, problem: Problem) -> Transform | None:
        size = next(iter(problem.weights.values())).shape[1]
        axis = Axis("x", "x", size, (), shared=problem.shared, groups=problem.groups)
        return draw_transform(axis, self.map_kind, problem.generator(next(iter(problem.weights))))

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        return {name: Compressed(current) for name, current in problem.current.items()}


@dataclass(frozen=True)
class DrawnPermutation(Drawn):
    name: ClassVar[str] = "drawn-permutation"
    map_kind: ClassVar[str] = PERMUTATION


@dataclass(frozen=True)
class DrawnRotation(Drawn):
    name: ClassVar[str] = "drawn-rotation"
    map_kind: ClassVar[str] = ORTHOGONAL


@dataclass(frozen=True)
class Doubled(Drawn):
    """Every input doubled; such a map changes no relative error of anything."""

    name: ClassVar[str] = "doubled"

    def prepare(self, problem: Problem) -> Diagonal:
        return Diagonal(torch.full((next(iter(problem.weights.values())).shape[1],), 2.0))


@dataclass(frozen=True)
class Watching(Method):
    """Notes what a step gets to see, and runs the block with the very weights it has."""

    name: ClassVar[str] = "watching"
    summary: ClassVar[str] = "for tests"
    seen: ClassVar[dict[str, Tensor]] = {}
    losses: ClassVar[list[float]] = []
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    @property
    def tunes(self) -> bool:
        return True

    def storage(self, current: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        return dict(current)

    def tune(self, run: BlockRun) -> Mapping[str, Any]:
        self.losses.extend((run.mean_loss({}), run.mean_loss(run.weights)))
        return {}

    def compress(self, problem: Problem) -> dict[str, Compressed]:
        self.seen.update(problem.weights)
        return {name: Compressed(current) for name, current in problem.current.items()}


MADE = (Drawn, DrawnPermutation, DrawnRotation, Doubled, Watching)
NAMES = {DIAGONAL: Drawn.name, PERMUTATION: DrawnPermutation.name, ORTHOGONAL: DrawnRotation.name}


@pytest.fixture(autouse=True)
def methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for method in MADE:
        monkeypatch.setitem(METHODS, method.name, method)
    Watching.seen.clear()
    Watching.losses.clear()
    yield


def chain(*names: str, **settings: Any) -> dict[str, Any]:
    return {"steps": [{"method": name} for name in names], **settings}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return fw.load(model, dtype=torch.float32)(input_ids=some_tokens(), use_cache=False).logits


def calibrated(folder: Path, recipe: dict[str, Any], length: int = 32) -> dict[str, Any]:
    np.save(folder / "tokens.npy", some_tokens(12, length).numpy())
    return {**recipe, "calibration": {"source": str(folder / "tokens.npy"), "samples": 12, "length": length, "batch_size": 4}}


def kinds(plan: Plan) -> list[str]:
    """Of the first block's axes where each map of the only step goes."""
    return ["folded" if each.folds else "beside" for each in plan.maps[plan.structure.blocks[0]]]


#: What the axes of a block take up of a diagonal, a permutation and a rotation.
PLACES = {
    "llama-tied-bias": ("ffff", "bfbf", "bfbb"),
    "opt-125m": ("ffff", "bfbf", "bfbb"),
    "opt-350m": ("bfbf", "bfbf", "bfbb"),
    "gpt2": ("fffb", "bfbf", "bfbb"),
    "gemma3": ("ffff", "bfbf", "bfbb"),
    "phi3": ("ffff", "bfbf", "bfbb"),
    "qwen2-moe": ("ffbf", "bfbf", "bfbb"),
}


@pytest.mark.parametrize("family", PLACES)
def test_maps_change_nothing_in_any_family(family: str, tmp_path: Path) -> None:
    save_model(family, tmp_path / "model")
    for (kind, name), expected in zip(NAMES.items(), PLACES[family], strict=True):
        plan = fw.plan(tmp_path / "model", chain(name))
        assert "".join(place[0] for place in kinds(plan)) == expected, kind
    plan = fw.plan(tmp_path / "model", chain(*NAMES.values()))
    result = fw.compress(plan, tmp_path / "out")
    assert result.totals.file_bytes == plan.totals.file_bytes
    assert all(planned.bytes == made.bytes for planned, made in zip(plan.rows, result.rows, strict=True))
    assert all(row.measured["relative_weight_error"] < 1e-10 for row in result.rows if row.chain)
    before = logits(tmp_path / "model")
    torch.testing.assert_close(logits(tmp_path / "out"), before, rtol=0, atol=1e-5 * float(before.abs().max()))
