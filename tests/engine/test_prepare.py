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
from safetensors.torch import load_file
from torch import Tensor

import featherweight as fw
from common import TINY
from featherweight import FeatherweightError
from featherweight.engine.progress import Event
from featherweight.methods.base import Compressed, Method, Problem
from featherweight.methods.block_run import BlockRun
from featherweight.methods.registry import METHODS
from featherweight.models.axis import DIAGONAL, ORTHOGONAL, PERMUTATION, Axis
from featherweight.models.draw import draw_transform
from featherweight.models.transforms import Diagonal, Transform
from featherweight.packed.files import sha256
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
    "qwen2-moe": ("ff" + 5 * "bf", "bf" + 5 * "bf", "bf" + 5 * "bb"),
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


@pytest.mark.parametrize("inputs", ["compressed", "dense"])
def test_later_steps_see_the_same_block_in_new_coordinates(inputs: str, tmp_path: Path) -> None:
    model = save_model("llama", tmp_path / "model")
    recipe = calibrated(tmp_path, chain(*NAMES.values(), "watching", engine={"inputs": inputs}))
    result = fw.compress(fw.plan(tmp_path / "model", recipe), tmp_path / "out")
    assert max(Watching.losses) < 1e-9 and len(Watching.losses) == 4
    assert not torch.equal(Watching.seen["model.layers.0.mlp.gate_proj"], model.model.layers[0].mlp.gate_proj.weight)
    assert all(row.measured["relative_error"] < 1e-10 for row in result.rows if row.chain)


def test_errors_are_those_of_the_original_product(tmp_path: Path) -> None:
    """All inputs doubled, all else as without: the same codes, the same errors, also of rows that took up the map."""
    save_model("llama", tmp_path / "model")
    rounding = {"method": "gptq", "bits": 4, "group_size": 16}
    found = []
    for name, steps in (("plain", [rounding]), ("doubled", [{"method": "doubled"}, rounding])):
        recipe = calibrated(tmp_path, {"steps": steps, "engine": {"inputs": "dense"}})
        rows = fw.compress(fw.plan(tmp_path / "model", recipe), tmp_path / name).rows
        found.append({row.module: row.measured["relative_error"] for row in rows if row.chain})
    assert found[0].keys() == found[1].keys()
    assert all(found[1][name] == pytest.approx(error, rel=1e-3) for name, error in found[0].items())


def test_norms_as_stored_lose_nothing(tmp_path: Path) -> None:
    """The factors that consumers undo are those that the rounded norm has."""
    fw.compress(fw.plan("demo", chain("drawn-diagonal", "watching"), changes=TINY), tmp_path / "out")
    stored = {name: tensor for shard in (tmp_path / "out").glob("model-*") for name, tensor in load_file(shard).items()}
    dense = fw.load("demo").state_dict()
    for block in range(4):
        norm, query = f"model.layers.{block}.input_layernorm.weight", f"model.layers.{block}.self_attn.q_proj"
        assert stored[norm].dtype == dense[norm].dtype == torch.bfloat16 and not torch.equal(stored[norm], dense[norm])
        before = dense[norm].double() * dense[f"{query}.weight"].double()
        torch.testing.assert_close(stored[norm].double() * Watching.seen[query].double(), before, rtol=1e-6, atol=0)


def test_linears_that_take_no_part_keep_the_map_from_being_folded(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "model")
    recipe = {
        **chain("drawn-diagonal"),
        "overrides": [
            {"match": "*.0.self_attn.k_proj", "skip": True},
            {"match": "*.1.mlp.up_proj", "steps": [{"method": "rtn", "group_size": 16}, {"method": "round-input"}]},
            {"match": "*.1.mlp.down_proj", "steps": [{"method": "magnitude"}, {"method": "drawn-diagonal"}]},
        ],
    }
    plan = fw.plan(tmp_path / "model", recipe)
    reasons = {row.module: row.reason for row in plan.rows}
    assert "k_proj takes no part" in reasons["model.layers.0.self_attn.q_proj"]
    assert "folded into input_layernorm" in reasons["model.layers.1.self_attn.q_proj"]
    assert "mlp.up_proj is integer by then" in reasons["model.layers.1.mlp.down_proj"]
    before = logits(tmp_path / "model")
    result = fw.compress(plan, tmp_path / "out")
    untouched = {row.module: row.measured["relative_weight_error"] for row in result.rows if row.chain == ("drawn-diagonal",)}
    assert len(untouched) == 11 and max(untouched.values()) < 1e-10
    assert float((logits(tmp_path / "out") - before).abs().max()) > 0


def test_what_was_dropped_moves_along(tmp_path: Path) -> None:
    save_model("opt-125m", tmp_path / "model")
    steps = [{"method": "magnitude"}, {"method": "drawn-permutation"}, {"method": "drawn-diagonal"}, {"method": "rtn"}]
    result = fw.compress(fw.plan(tmp_path / "model", {"steps": steps}), tmp_path / "out")
    plain = fw.compress(fw.plan(tmp_path / "model", {"steps": steps[:1]}), tmp_path / "plain")
    for row, other in zip(result.rows, plain.rows, strict=True):
        if row.chain:
            assert row.measured["sparsity"] == pytest.approx(0.5, abs=0.02) == other.measured["sparsity"]


def test_a_killed_run_with_maps_goes_on_bit_identically(tmp_path: Path) -> None:
    """Folded norms and biases are in place again before the next block runs."""
    save_model("opt-125m", tmp_path / "model")
    steps = [
        {"method": "drawn-diagonal"},
        {"method": "ria", "pattern": "2:4", "permute": True},
        {"method": "gptq", "group_size": 16},
    ]
    plan = fw.plan(tmp_path / "model", calibrated(tmp_path, {"steps": steps}))

    def kill(event: Event) -> None:
        if event.stage == "block written":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fw.compress(plan, tmp_path / "out", report=kill)
    assert fw.compress(plan, tmp_path / "out").resumed == 2
    whole = fw.compress(plan, tmp_path / "whole")
    shards = [[sha256(path) for path in sorted((tmp_path / name).glob("model-*"))] for name in ("out", "whole")]
    assert shards[0] == shards[1] and len(shards[0]) == 3
    folded = {row.module.removeprefix("model.decoder.layers.0.") for row in whole.rows if row.kind == "folded"}
    assert {"self_attn_layer_norm.bias", "self_attn.v_proj.bias", "fc1.bias"} <= folded
    assert fw.verify(tmp_path / "out")["proof"]["largest_difference"] < 1e-4


def test_the_head_keeps_its_map_beside_it(tmp_path: Path) -> None:
    steps = [{"method": "magnitude", "pattern": "2:4", "permute": True, "scope": "all"}]
    plan = fw.plan("demo", {"steps": steps})
    assert plan.rows[-1].storage == "rotated input permutation(masked(dense))" and "beside the weight" in plan.rows[-1].reason
    assert fw.compress(plan, tmp_path / "out").totals.file_bytes == plan.totals.file_bytes


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (("rtn", "drawn-diagonal"), "drawn-diagonal's factors would change"),
        (("magnitude", "drawn-rotation"), "would mix dropped weights"),
        (("structured", "drawn-permutation"), "stored as sliced"),
        (("round-input", "drawn-diagonal"), "stored as rounded_input"),
    ],
)
def test_maps_too_late_are_refused(steps: tuple[str, ...], told: str) -> None:
    with pytest.raises(FeatherweightError, match=told):
        fw.plan("demo", chain(*steps))


def test_what_cannot_be_mapped_is_refused() -> None:
    pattern = {"method": "magnitude", "pattern": "2:4"}
    with pytest.raises(FeatherweightError, match="would break the pattern"):
        fw.plan("demo", {"steps": [pattern, {"method": "drawn-permutation"}]})
    with pytest.raises(FeatherweightError, match="inputs of a whole block"):
        fw.plan("demo", chain("drawn-diagonal"), changes={"engine.true_sequential": True})
    with pytest.raises(FeatherweightError, match="an embedding has none"):
        fw.plan("demo", {**chain("rtn"), "embedding": {"method": "drawn-diagonal"}})
    with pytest.raises(FeatherweightError, match="only N:M depends on the order"):
        fw.plan("demo", {"steps": [{"method": "ria", "permute": True}]})


def test_maps_of_another_kind_than_planned_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model("llama", tmp_path / "model")
    monkeypatch.setattr(Drawn, "prepare", lambda self, problem: Doubled().prepare(problem))
    with pytest.raises(FeatherweightError, match="otherwise than planned"):
        fw.compress(fw.plan(tmp_path / "model", chain("drawn-permutation")), tmp_path / "out")


@pytest.mark.parametrize("name", ["drawn-diagonal", "drawn-permutation"])
def test_nothing_drawn_is_nothing_changed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model("llama", tmp_path / "model")
    monkeypatch.setattr(Drawn, "prepare", lambda self, problem: None)
    plan = fw.plan(tmp_path / "model", chain(name))
    assert fw.compress(plan, tmp_path / "out").totals.file_bytes == plan.totals.file_bytes
    torch.testing.assert_close(logits(tmp_path / "out"), logits(tmp_path / "model"), rtol=1e-6, atol=1e-6)
