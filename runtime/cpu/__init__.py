"""Engines for CPUs: memory, kernel, launches."""
