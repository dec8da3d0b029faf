"""The version of the package, which engines state."""

__version__ = "0.1.0"
