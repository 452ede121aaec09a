"""An error that keeps a command from doing its work."""


class CommandError(Exception):
    """There is no such model, a file cannot be read or written, a package is missing: exit code 2."""
