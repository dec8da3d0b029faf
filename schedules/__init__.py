"""Placement recipes and machine descriptions."""

PLACEMENTS = ("single", "tensor_parallel", "roles", "even", "auto")
"""The first is for one device, the second is what several devices get; `auto` chooses among the others by time."""

REDUCTIONS = ("one_shot", "two_step")
"""Forms of an all-reduce: every device reduces all columns; or each reduces some and pushes the sums to the others."""
