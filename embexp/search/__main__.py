"""`python -m embexp.search`."""

import sys

from embexp.search.cli import main

if __name__ == "__main__":
    main(sys.argv[1:])
