"""What a trial's process must know, as plain values that travel to another machine. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JOURNAL = "study.journal"
SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")


@dataclass(frozen=True)
class Address:
    """Where a study is kept.

    folder: the sweep's, absolute, with the journal unless one of the others is given. url: a PostgreSQL address without
    a password. variable: the name of the environment variable that holds one.
    """

    folder: str
    url: str | None = None
    variable: str | None = None

    @property
    def setting(self) -> str:
        """What the user has set, for messages; never the address behind a variable."""
        if self.variable is not None:
            return f"sweep.storage_env={self.variable}"
        return f"sweep.storage={self.url}" if self.url is not None else str(Path(self.folder, JOURNAL))


@dataclass(frozen=True)
class TrialReference:
    """A trial.

    study: its name. number: the trial's. owner: the token of this attempt at it; another one's means that the trial was
    taken away. objectives: what the study asks for. reported: the metric of dev that is told while training. looks: at
    dev, per epoch. pruner: its config node. lease: seconds. confirms: whether it reruns a winner with another seed;
    then it is scored on test, and not pruned.
    """

    address: Address
    study: str
    number: int
    owner: str
    objectives: tuple[str, ...]
    reported: str
    looks: int
    pruner: Mapping[str, Any] | None
    lease: float
    confirms: bool = False
