"""Simulated steps of many plans."""
