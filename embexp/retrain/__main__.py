"""`python -m embexp.retrain`."""

from embexp.retrain.cli import main

if __name__ == "__main__":
    main()
