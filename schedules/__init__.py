"""Placement recipes and machine descriptions."""

PLACEMENTS = ("single", "tensor_parallel", "roles", "even")
"""The recipes: the first is for one device, the second is what several devices get."""

REDUCTIONS = ("one_shot", "two_step")
"""Forms of a sum over devices: all add all columns; or each adds its share, then pushes the sums to the others."""
