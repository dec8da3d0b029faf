"""place: which devices run which part of which operator, by a recipe of `schedules/`."""

from __future__ import annotations

from tilecompile.errors import InputError
from tilecompile.ir.graph import OpGraph
from tilecompile.ir.placement import PlacedGraph
from tilecompile.passes.place.distribute import distribute
from tilecompile.schedules import auto, even, roles, single, tensor_parallel
from tilecompile.schedules.auto import Choice, Recipe

RECIPES: dict[str, Recipe] = {
    "single": single.place,
    "tensor_parallel": tensor_parallel.place,
    "roles": roles.place,
    "even": even.place,
}

SEVERAL = {name: recipe for name, recipe in RECIPES.items() if name != "single"}
"""Those for two devices or more, which placement `auto` chooses among."""


def place(graph: OpGraph, recipe: str | Choice, devices: int, reduction: str | None = None) -> PlacedGraph:
    """The operators of all devices, by the name of a recipe or by what `choose` has chosen.

    `reduction` is the form of sums over devices, None for the recipe's choice.

    InputError for an unknown recipe or one that can't use the devices.
    """
    if not isinstance(recipe, Choice) and recipe not in RECIPES:
        raise InputError(f"placement {recipe!r} is unknown; there are: {', '.join(RECIPES)}")
    try:
        if isinstance(recipe, Choice):
            placement = auto.place(graph, devices, recipe, RECIPES)
        else:
            placement = RECIPES[recipe](graph, devices, reduction)
        return PlacedGraph(distribute(graph, placement), placement)
    except ValueError as error:
        raise InputError(str(error)) from error
