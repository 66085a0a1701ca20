"""`python -m embexp`, and the installed command."""

from embexp.starting import uncollected


def main() -> None:
    """Load the command line and run it."""
    with uncollected():
        from embexp import cli  # Hydra

    cli.main()


if __name__ == "__main__":
    main()
