"""Running and timing engines, and reporting it."""
