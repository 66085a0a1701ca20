"""`python -m embexp.mine`."""

from embexp.mine.cli import main

if __name__ == "__main__":
    main()
