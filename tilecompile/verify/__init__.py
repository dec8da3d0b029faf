"""The proof of a schedule: knows its tables and nothing else."""
