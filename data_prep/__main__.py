"""`python -m data_prep` is the command `ma2mba data`."""

import sys

from ma2mba.cli.app import main

main(["data", *sys.argv[1:]])
