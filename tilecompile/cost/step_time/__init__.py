"""The spans of a step's tasks, measured or simulated, and the critical path through them."""
