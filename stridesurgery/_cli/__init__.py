"""Command line, as `stridesurgery` and as `python -m stridesurgery`."""

from stridesurgery._cli.main import main

__all__ = [
    "main",
]
