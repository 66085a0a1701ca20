"""`python -m embexp.export`."""

import sys

from embexp.export.cli import main

if __name__ == "__main__":
    main(sys.argv[1:])
