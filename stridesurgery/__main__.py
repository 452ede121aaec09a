"""`python -m stridesurgery`."""

import sys

from stridesurgery.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
