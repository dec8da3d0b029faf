"""The compiler's side of the files in an engine folder."""
