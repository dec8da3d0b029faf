"""Placement recipes and machine descriptions."""
