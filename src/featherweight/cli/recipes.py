"""`fw recipes`: the recipes that ship, and the form of one's own."""

from __future__ import annotations

from featherweight.cli import options
from featherweight.cli.output import print_json


def run(json: options.Json = False, offline: options.Offline = False) -> None:
    """List shipped recipes; with --json also the schema of a recipe file."""
    from featherweight.planning.recipe import Recipe, load_recipe, shipped_recipes

    loaded = {name: load_recipe(name) for name in shipped_recipes()}
    if json:
        print_json(
            {"recipes": {name: recipe.as_dict() for name, recipe in loaded.items()}, "schema": Recipe.model_json_schema()}
        )
        return
    for name, recipe in loaded.items():
        print(f"{name:18} {recipe.description}")
