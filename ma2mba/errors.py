"""Errors that a person can act on."""


class UserError(Exception):
    """Bad input. The message names the file, key or value and the remedy; command lines print it and exit with 2."""
