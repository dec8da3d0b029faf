"""The page of an engine: `tilecompile inspect ENGINE --html FILE`. Needs nothing but the engine's own tables."""
