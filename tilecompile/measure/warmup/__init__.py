"""From process start to first token: the engine beside its peers, each in fresh processes.

`systems.py` says what is measured, `marks.py` runs it in a process and reports (`run_*.py` are the programs),
`file_cache.py` is the system's file cache, `measure.py` does the runs, `describe.py` reads the engine and `page.py`
makes the page.
"""
