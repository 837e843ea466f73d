"""The default sweep: every registered method at the sizes it names, about 2 to 8 bits."""

from __future__ import annotations

from collections.abc import Mapping

from featherweight.methods.base import Method
from featherweight.methods.registry import METHODS
from featherweight.planning.recipe import Recipe, load_recipe


def sweep_recipes(methods: Mapping[str, type[Method]] = METHODS) -> list[Recipe]:
    """One recipe per point of every method, named `METHOD-POINT`; a newly registered method is among them."""
    recipes = []
    for name, method in methods.items():
        for label, steps in method.points.items():
            chain = [{"method": name, **step} for step in steps]
            recipes.append(load_recipe({"name": f"{name}-{label}", "source": method.source, "steps": chain}))
    return recipes
