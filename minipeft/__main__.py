"""`python -m minipeft`: the same as the `minipeft` command."""

from minipeft.cli import main

main()
