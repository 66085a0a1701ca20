"""The one exception that is shown to a user without a traceback. First in the flow: imports nothing."""


class UserError(Exception):
    """Something the user can mend. The text says what was found, what is accepted and what to try.

    `problems` holds one text per mistake, so that several are reported together.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def listed(values: object, *, most: int = 5) -> str:
    """Join up to `most` values for a message and say how many more there are."""
    items = [str(value) for value in values]  # type: ignore[attr-defined]
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
