"""The helpers that the bodies of ops are written with."""
