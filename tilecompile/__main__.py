"""python -m tilecompile: the command line."""

from tilecompile.cli.app import main

main()
