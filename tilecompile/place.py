"""place: which devices own which operator, by a recipe of `schedules/`."""

from __future__ import annotations

from tilecompile.errors import InputError
from tilecompile.graph import OpGraph
from tilecompile.plan import PlacedGraph
from tilecompile.schedules import single

RECIPES = {"single": single.place}


def place(graph: OpGraph, recipe: str, devices: int) -> PlacedGraph:
    """The graph with every operator's devices. InputError for an unknown recipe or one that can't use the devices."""
    if recipe not in RECIPES:
        raise InputError(f"placement {recipe!r} is unknown; there are: {', '.join(RECIPES)}")
    try:
        return PlacedGraph(graph, RECIPES[recipe](graph, devices))
    except ValueError as error:
        raise InputError(str(error)) from error
