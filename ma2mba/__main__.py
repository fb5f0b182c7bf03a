"""`python -m ma2mba` is the command `ma2mba`."""

from ma2mba.cli import main

main()
