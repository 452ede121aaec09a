"""Error that stops a command."""


class CommandError(Exception):
    """Stop a command with exit code 2.

    For example: no such model, a file that cannot be read or written, a missing package.
    """
