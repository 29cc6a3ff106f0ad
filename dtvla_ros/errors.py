"""The one error a user is meant to read: it names the file or value and the remedy."""


class UserError(Exception):
    """Bad input. The command line prints it as one line and exits with code 2."""
