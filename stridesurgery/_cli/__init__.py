"""The command line: `stridesurgery` and `python -m stridesurgery` alike."""

from stridesurgery._cli.main import main

__all__ = [
    "main",
]
