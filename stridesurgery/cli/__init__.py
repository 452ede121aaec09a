"""The command line: `stridesurgery` and `python -m stridesurgery` alike."""
