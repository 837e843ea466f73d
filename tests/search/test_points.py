"""The default sweep: every registered method is in it, at sizes it can be planned at, under names of its own."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import pytest

import featherweight as fw
from featherweight.methods.registry import METHODS
from featherweight.methods.rtn import RTN
from featherweight.planning.recipe import load_recipe, shipped_recipes
from featherweight.search.points import sweep_recipes


@dataclass(frozen=True)
class Newcomer(RTN):
    name: ClassVar[str] = "newcomer"
    points: ClassVar[dict] = {"default": ({},)}


@pytest.fixture(scope="module")
def bits():
    """Planned bits a weight of every point, by recipe name; a point that cannot be planned fails here."""
    return {recipe.name: fw.plan("demo", recipe).totals.linear_bits for recipe in sweep_recipes()}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "imported"])  # which needs somebody else's checkpoint
def test_every_method_has_a_point_of_its_own(name, bits):
    recipes = sweep_recipes({name: METHODS[name]})
    assert recipes, f"{name} has no point in the sweep; give it `points`"
    for recipe in recipes:
        assert name in {step.method for step in recipe.steps}
        assert 1.5 < bits[recipe.name] < 10, recipe.name


def test_the_sweep_covers_two_to_eight_bits_and_takes_newcomers(bits):
    recipes = sweep_recipes({**METHODS, "newcomer": Newcomer})
    assert recipes[-1].name == "newcomer-default" and recipes[-1].steps[0].method == "newcomer"
    assert len(bits) == len(recipes) - 1, "two points of one name"
    ordered = sorted(bits.values())
    assert ordered[0] < 2.5 and ordered[-1] > 8 and max(b - a for a, b in pairwise(ordered)) < 1.5


def test_a_point_of_a_shipped_name_is_that_recipe():
    shipped = shipped_recipes()
    for recipe in sweep_recipes():
        if recipe.name in shipped:
            ours = [step.model_dump() for step in recipe.steps]
            assert ours == [step.model_dump() for step in load_recipe(recipe.name).steps], recipe.name
