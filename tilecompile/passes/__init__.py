"""The passes: a graph or a plan in, a graph or a plan out."""
