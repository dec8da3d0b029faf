"""A step of an engine on a model of a machine: what its tasks do, what that costs, and a discrete-event simulation."""
