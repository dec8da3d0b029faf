"""python -m tilecompile: the command line."""

from tilecompile.cli import main

main()
