"""`python -m ma2mba` is the command `ma2mba`."""

from ma2mba.cli.app import main

main()
