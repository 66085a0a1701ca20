"""What the config of retraining may hold. Called by `retrain.cli`, which checks with it before anything heavy loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embexp.config.checks import Program, Types
from embexp.datasets.pairs import READERS

CHOICES = {"start": ("base", "tuned"), "if_drift": (None, "watch", "retrain")}
CAPS, SERVER = ("usd", "tokens", "calls"), ("base_url", "api_key_env")
FILE: Types = ((str, type(None)), "a file of questions, or null")
ROOT: dict[str, Types] = {
    "documents": ((str, list), "a folder, a file, a glob, or a list of these"),
    "models": ((str, type(None)), "a folder, or null"),
    "start": ((str,), "base or tuned"),
    "margin": ((int, float), "a number from 0 to 1"),
    "keep": ((int,), "a whole number"),
    "if_drift": ((str, type(None)), "watch, retrain or null"),
    "queries": FILE,
    "real_questions": FILE,
    "budget": ((dict,), "a mapping with usd, tokens and calls"),
    "llm": ((dict,), "a mapping with base_url and api_key_env"),
    "allowed_packages": ((list,), "a list of package names"),
}


def _mistakes(config: Mapping[str, Any]) -> list[str]:
    problems = []
    for key, choices in CHOICES.items():
        if isinstance(config[key], str) and config[key] not in choices:
            problems.append(f"{key}={config[key]} must be {' or '.join(str(each) for each in choices if each)}")
    if isinstance(config["margin"], int | float) and not 0 <= config["margin"] <= 1:
        problems.append(f"margin={config['margin']} must be from 0 to 1: how much of the metric may be lost")
    for key in ("queries", "real_questions"):
        file = Path(str(config[key])).expanduser()
        if isinstance(config[key], str) and not (file.is_file() and file.suffix.lower() in READERS):
            problems.append(f"{key}={config[key]} is not a file that ends in {', '.join(READERS)}")
    if config["queries"] is not None and config["if_drift"] is None:
        problems.append(
            "queries= is for the check of drift alone: set if_drift=watch, or real_questions= to test on them"
        )
    budget = config["budget"] if isinstance(config["budget"], Mapping) else {}
    for name in CAPS:
        cap = budget.get(name)
        if cap is not None and (not isinstance(cap, int | float) or isinstance(cap, bool) or cap <= 0):
            problems.append(f"budget.{name}={cap!r} must be a number above 0, or null")
    server = config["llm"] if isinstance(config["llm"], Mapping) else {}
    for name in SERVER:
        if not isinstance(server.get(name), str | None):
            problems.append(f"llm.{name}={server[name]!r} must be a text, or null")
    return problems


RETRAIN = Program(name="retrain", groups=[], root=ROOT, choices=[], at_least={"keep": 1}, further=_mistakes)
