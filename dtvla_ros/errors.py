"""The errors a user is meant to read."""


class UserError(Exception):
    """Bad input: names the file or value and the remedy. One line and exit code 2."""


class NodeDied(Exception):
    """A node ended that should not have; says how, and its last words. Exit code 1."""


class OutOfMemory(MemoryError):
    """The memory of the device an engine runs on, or of the host, is used up."""
