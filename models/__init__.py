"""Model definitions: one decode step in tile ops, configurations, checkpoint names."""
