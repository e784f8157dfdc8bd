"""`python -m wsrecover`: the command line."""

from wsrecover.cli import main

main()
