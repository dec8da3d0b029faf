"""Bytes and time, computed without running anything."""
