"""What the config of mining may hold. Called by `mine.cli`, which checks with it before anything heavy loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embexp.checks import Program, Types, nearest
from embexp.components import build
from embexp.config import OWN_KEYS
from embexp.errors import UserError

QUICKLY_MADE = ["llm", "split", "chunker", "filter"]  # their modules load nothing heavy
KINDS = ["question", "keywords", "problem"]
SIDES = ["train", "dev", "test"]
COUNT = "a whole number from 0 up"
CAP = "a number above 0, or null"

ROOT_TYPES: dict[str, Types] = {
    "documents": ((str, list, type(None)), "a folder, a file, a glob, or a list of these"),
    "out": ((str,), "a folder"),
    "limit": ((int, type(None)), "a whole number or null"),
    "questions": ((dict,), "a mapping with train, dev, test and kinds"),
    "prompts": ((dict,), "a mapping with judge and paraphrase"),
    "prices": ((dict,), "a mapping of models to prices"),
    "real_questions": ((str, type(None)), "a file, dataset, or null"),
    "paraphrases": ((int, float), "a share from 0 to 1"),
    "judge": ((bool,), "true or false"),
    "complete": ((int,), COUNT),
    "budget": ((dict,), "a mapping with usd, tokens and calls"),
    "dry_run": ((bool,), "true or false"),
    "cache": ((bool, str), "true, false or a folder"),
    "debug": ((bool,), "true or false"),
    "allowed_packages": ((list,), "a list of package names"),
}


def _mistakes_of_mining(config: Mapping[str, Any]) -> list[str]:
    problems = [f"{group}=null has nothing to mine with; choose one" for group in ("model", "chunker", "miner", "llm",
                "filter", "split") if config[group] is None]  # fmt: skip
    if (config["documents"] is None) == (config["dataset"] is None):
        problems.append("set documents= to a folder or files, or dataset= to a data set whose passages are mined; one")
    if config["real_questions"] == "dataset" and config["dataset"] is None:
        problems.append("real_questions=dataset needs a data set: dataset=pubmedqa, say")
    split = config["split"]
    if isinstance(split, Mapping) and split.get("test") == 0 and config["real_questions"] is None:
        problems.append("split.test=0 leaves nothing to test on; set real_questions=, or a share above 0")
    if isinstance(config["paraphrases"], int | float) and not 0 <= config["paraphrases"] <= 1:
        problems.append(f"paraphrases={config['paraphrases']} must be a share from 0 to 1")
    if isinstance(config["complete"], int) and config["complete"] < 0:
        problems.append(f"complete={config['complete']} must be {COUNT}")
    problems += _question_mistakes(config["questions"]) + _budget_mistakes(config["budget"])
    return problems + [mistake for name in QUICKLY_MADE for mistake in _out_of_range(config, name)]


def _out_of_range(config: Mapping[str, Any], name: str) -> list[str]:
    """What a node's class says of its values; also a key where only its name belongs, before Hydra writes it down."""
    if not isinstance(config[name], Mapping) or "???" in config[name].values():
        return []
    try:
        build(config[name], allowed=config["allowed_packages"])
    except UserError as error:
        return list(error.problems)
    except Exception:  # a key or a type that the class does not take, which is said already
        return []
    return []


def _question_mistakes(questions: Any) -> list[str]:
    if not isinstance(questions, Mapping):
        return []
    problems = _keys_of("questions", questions, [*SIDES, "kinds"])
    for side in SIDES:
        count = questions.get(side)
        if side in questions and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
            problems.append(f"questions.{side}={count!r} must be {COUNT}")
    kinds = questions.get("kinds")
    if not isinstance(kinds, list) or not kinds or any(kind not in KINDS for kind in kinds):
        problems.append(f"questions.kinds={kinds!r} must be a list of {', '.join(KINDS)}")
    return problems


def _budget_mistakes(budget: Any) -> list[str]:
    if not isinstance(budget, Mapping):
        return []
    problems = _keys_of("budget", budget, ["usd", "tokens", "calls"])
    for name, cap in budget.items():
        if cap is not None and (not isinstance(cap, int | float) or isinstance(cap, bool) or cap <= 0):
            problems.append(f"budget.{name}={cap!r} must be {CAP}")
    return problems


def _keys_of(name: str, node: Mapping[str, Any], keys: list[str]) -> list[str]:
    problems = [f"{name}.{key}: there is no such key;{nearest(key, keys)}" for key in node if key not in keys]
    return problems + [f"{name}.{key} must be set" for key in keys if key not in node]


MINE = Program(
    name="mine",
    groups=["model", "chunker", "miner", "llm", "filter", "dataset", "split"],
    root=ROOT_TYPES,
    choices=["model", "chunker", "miner", "llm", "filter", "dataset", "preset", "prompt"],
    owned={"miner": {"client": "embexp gives it"}},
    own_keys={"model": OWN_KEYS["model"]},
    at_least={"limit": 1, "chunker.tokens": 1},
    further=_mistakes_of_mining,
)
