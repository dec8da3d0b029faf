"""From process start to first token: the engine beside its peers, each in fresh processes.

`systems.py` says what is measured, `run_*.py` are the processes, `marks.py` what they report, `cache.py` the system's
file cache, `measure.py` the runs and `page.py` the page. The process that measures imports none of the packages that it
measures the import of: files that it has mapped itself would stay in the file cache.
"""
