"""The one exception that is shown to a user without a traceback. First in the flow: imports nothing."""


class UserError(Exception):
    """Something the user can mend. The text says what was found, what is accepted and what to try.

    `problems` holds one text per mistake, so that several are reported together.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def explained(error: UserError) -> str:
    """The mistakes of a UserError, one to a line."""
    if len(error.problems) == 1:
        return f"embexp: {error.problems[0]}"
    return "\n".join([f"embexp: {len(error.problems)} mistakes", *(f"  - {problem}" for problem in error.problems)])


class NotNowError(UserError):
    """Something in the way that passes by itself: the run can go on later."""


class BusyError(NotNowError):
    """Another process is at work in the run's folder."""


class FullError(NotNowError):
    """The disk is full."""


class Pruned(Exception):
    """A search has given this run up. It ends early and has not failed."""


def listed(values: object, *, most: int = 5) -> str:
    """Join up to `most` values for a message and say how many more there are."""
    items = [str(value) for value in values]  # type: ignore[attr-defined]
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def counted(number: int, thing: str, things: str = "") -> str:
    """`1 step`, `1,200 steps`; things: the plural where it is not thing + s."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"


FULL = ("No space left", "File too large", "Disk quota", "file write failed", "inline_container")  # the last is torch's
NO_MEMORY = ("allocate memory", "out of memory", "bad_alloc")


def is_full(error: Exception) -> bool:
    """Whether an error means that there was no space left to write to."""
    return any(words in str(error) for words in FULL)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory was refused, the machine's or a GPU's."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def described(error: Exception) -> str:
    """An error's text, with what to try where the machine is at fault: its disk or its memory."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, UserError):
        return text
    named = text if text.startswith(type(error).__name__) else f"{type(error).__name__}: {text}"
    if is_full(error):
        return f"the disk is full, or nearly ({named}). Free some space, then resume the run"
    if isinstance(error, PermissionError) or "Read-only file system" in text:
        return f"a file can't be written ({named}). Mend the permissions, then resume the run"
    if is_out_of_memory(error):
        return (
            f"memory was refused ({named.splitlines()[0]}). Try trainer.per_device_train_batch_size=16, "
            "model.max_seq_length=128 or a smaller model"
        )
    return named
