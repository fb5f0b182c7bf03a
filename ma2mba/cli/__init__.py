"""The command line: `ma2mba` (`ma2mba.cli.app`), one file for each command."""
