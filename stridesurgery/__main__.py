"""`python -m stridesurgery`."""

import sys

from stridesurgery._cli import main

if __name__ == "__main__":
    sys.exit(main())
