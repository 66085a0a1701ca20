"""`python -m embexp.drift`."""

from embexp.drift.cli import main

if __name__ == "__main__":
    main()
