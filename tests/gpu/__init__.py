"""The script that measures and checks everything on a real GPU: `prepare.py` compiles, `run.py` runs what it made."""
