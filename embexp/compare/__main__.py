"""`python -m embexp.compare`."""

from embexp.compare.cli import main

if __name__ == "__main__":
    main()
