"""What the config of drift may hold. Called by `drift.cli`, which checks with it before anything heavy loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embexp.config.checks import Program, Types
from embexp.datasets.pairs import READERS

NUMBER, COUNT = (int, float), (int,)
SHARE = "a number from 0 to 1"
CAPS = ("usd", "tokens", "calls")
CAP = ((int, float, type(None)), "a number, or null", 0, 10**12)
# key -> what it takes, in words, and its bounds
NESTED: dict[str, tuple[tuple[type, ...], str, float, float]] = {
    "shift.p_value": (NUMBER, SHARE, 0, 1),
    "shift.permutations": (COUNT, "a whole number from 99 up", 99, 10**6),
    "shift.documents": (COUNT, "a whole number from 2 to 1000", 2, 1000),  # the kernel of all pairs is held in memory
    "shift.passages": (COUNT, "a whole number from 1 to 20", 1, 20),
    "shift.least_documents": (COUNT, "a whole number from 2 up", 2, 1000),
    "recall.at": (COUNT, "a whole number from 1 up", 1, 1000),
    "recall.drop": (NUMBER, SHARE, 0, 1),
    "recall.documents": (COUNT, "a whole number from 2 up", 2, 10**6),
    "recall.passages": (COUNT, "a whole number from 1 up", 1, 10**6),
    "recall.corpus": (COUNT, "a whole number from 100 up", 100, 10**9),
    "recall.least_documents": (COUNT, "a whole number from 2 up", 2, 10**6),
    "share.watch": (NUMBER, SHARE, 0, 1),
    "share.retrain": (NUMBER, SHARE, 0, 1),
    **dict.fromkeys((f"{group}.{name}" for group in ("budget", "model.budget") for name in CAPS), CAP),
}  # fmt: skip
ROOT: dict[str, Types] = {
    "documents": ((str, list), "a folder, a file, a glob, or a list of these"),
    "queries": ((str, type(None)), "a file of questions, or null"),
    "out": ((str, type(None)), "a folder, or null"),
    "seed": ((int,), "a whole number"),
    **dict.fromkeys(("shift", "recall", "share", "budget", "model"), ((dict,), "a mapping")),
    "cache": ((bool, str, type(None)), "true, false, a folder, or null for the run's"),
    "allowed_packages": ((list,), "a list of package names"),
}


def _mistakes(config: Mapping[str, Any]) -> list[str]:
    problems = []
    for key, (types, words, least, most) in NESTED.items():
        *groups, name = key.split(".")
        found: Any = config
        for group in groups:
            found = found.get(group) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping) or name not in found:
            problems.append(f"{key} must be set")
            continue
        value = found[name]
        typed = isinstance(value, types) and not isinstance(value, bool)
        if not typed or (value is not None and not least <= value <= most):
            problems.append(f"{key}={value!r} must be {words}")
    miner = config["recall"].get("miner") if isinstance(config["recall"], Mapping) else None
    if miner not in ("sentences", "run"):
        problems.append(
            f"recall.miner={miner!r} must be sentences, or run for the LLM that the run's data were mined with"
        )
    log = config["queries"]
    if isinstance(log, str) and not (Path(log).expanduser().is_file() and Path(log).suffix.lower() in READERS):
        problems.append(f"queries={log} is not a file that ends in {', '.join(READERS)}")
    return problems


DRIFT = Program(name="drift", groups=[], root=ROOT, choices=[], further=_mistakes)
