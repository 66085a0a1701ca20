"""`python -m embexp.dashboard`."""

from embexp.dashboard.cli import main

if __name__ == "__main__":
    main()
