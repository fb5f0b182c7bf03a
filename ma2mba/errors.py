"""The error that a user can fix."""


class UserError(Exception):
    """An error that the user can fix, such as bad input or a full disk.

    The message says what is wrong, where (file, key, value), and what to do. Commands print it without a traceback
    and exit with code 2.
    """
