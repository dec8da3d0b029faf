"""Costs of a machine, from steps that were recorded on it."""
