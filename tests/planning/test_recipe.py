"""Recipes: every shipped one resolves; wrong ones say what is near."""

from __future__ import annotations

from pathlib import Path

import pytest

import featherweight as fw
from featherweight import FeatherweightError
from featherweight.planning.recipe import Recipe, load_recipe, shipped_recipes


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_resolve_and_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"step": []}, "steps"),
        ({"steps": []}, "steps"),
        ({"steps": [{"method": "gptp"}]}, "gptq"),
        ({"steps": [{"method": "gptq", "group": 64}]}, "group_size"),
        ({"steps": [{"method": "gptq", "bits": 7}]}, "bits"),
        ({"steps": [{"method": "rtn"}], "calibration": {"sample": 3}}, "samples"),
        ({"steps": [{"method": "rtn"}], "engine": {"inputs": "wet"}}, "dense"),
        ({"steps": [{"method": "rtn"}], "embedding": {"method": "gptq"}}, "rtn"),
        (
            {"steps": [{"method": "rtn"}], "embedding": {"method": "rtn", "bits": 8}, "head": {"method": "rtn", "bits": 4}},
            "tied",
        ),
        ({"steps": [{"method": "rtn"}], "overrides": [{"match": "*", "settings": {"bitz": 3}}]}, "bits"),
    ],
)
def test_wrong_recipes_are_explained(recipe: dict, says: str) -> None:
    with pytest.raises(FeatherweightError) as problem:
        fw.plan("demo", recipe)
    assert says in str(problem.value)


def test_overrides_apply_in_order() -> None:
    recipe = {
        "steps": [{"method": "rtn", "bits": 4}],
        "overrides": [
            {"match": "*.mlp.*", "settings": {"bits": 8}},
            {"match": "*.down_proj", "steps": [{"method": "rtn", "bits": 2, "group_size": 32}]},
            {"match": "model.layers.0.*", "skip": True},
        ],
    }
    rows = {row.module: row for row in fw.plan("demo", recipe).rows}
    assert rows["model.layers.1.self_attn.q_proj"].description["bits"] == 4
    assert rows["model.layers.1.mlp.up_proj"].description["bits"] == 8
    assert rows["model.layers.1.mlp.down_proj"].description["bits"] == 2
    assert rows["model.layers.0.mlp.up_proj.weight"].reason == "left alone by an override"


def test_changes_reach_lists_and_sections_that_are_not_there_yet() -> None:
    recipe = load_recipe("gptq-4bit").with_changes({"steps.0.bits": 3, "embedding.method": "rtn", "calibration.samples": 5})
    assert recipe.steps[0].settings["bits"] == 3
    assert recipe.embedding is not None and recipe.embedding.method == "rtn"
    assert recipe.calibration.samples == 5


def test_not_yaml_and_not_a_mapping(tmp_path: Path) -> None:
    for text in ("steps: [", "- gptq"):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(FeatherweightError, match="bad"):
            load_recipe(path)


def test_plan_reads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight.models.weights import LazyWeights

    def refuse(self: object, name: str) -> None:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(LazyWeights, "read", refuse)
    plan = fw.plan("demo", "gptq-4bit")
    assert plan.totals.file_bytes > 0 and isinstance(plan.recipe, Recipe)
