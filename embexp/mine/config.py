"""What the config of mining may hold. Called by `mine.cli`, which checks with it before anything heavy loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from embexp.config.checks import Program, Types, nearest
from embexp.config.components import build
from embexp.config.experiment import OWN_KEYS
from embexp.errors import UserError
from embexp.service.budget import unpriced

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
    problems += _prompt_mistakes(config) + _miner_mistakes(config)
    return problems + [mistake for name in QUICKLY_MADE for mistake in _out_of_range(config, name)]


def _out_of_range(config: Mapping[str, Any], name: str) -> list[str]:
    """What a node's class says of its values; also a key where only its name belongs, before Hydra writes it down."""
    return _said_by(lambda: _built(config, name))


def _built(config: Mapping[str, Any], name: str) -> Any:
    """What a node names; None where it must still be set."""
    if not isinstance(config[name], Mapping) or "???" in config[name].values():
        return None
    return build(config[name], allowed=config["allowed_packages"])


def _said_by(act: Callable[[], object]) -> list[str]:
    try:
        act()
    except UserError as error:
        return list(error.problems)
    except Exception:  # a key or a type that the class does not take, which is said already
        return []
    return []


def _prompt_mistakes(config: Mapping[str, Any]) -> list[str]:
    """Placeholders that a prompt lacks, or that nothing fills in."""
    from embexp.mine.llm import LLMJudge, LLMMiner, Paraphraser  # a fifth of a second that help need not pay

    if not isinstance(config["prompts"], Mapping):
        return []
    makers: dict[str, tuple[Callable[..., object], Any]] = {
        f"prompts.{name}": (make, config["prompts"].get(name))
        for name, make in (("judge", LLMJudge), ("paraphrase", Paraphraser))
    }
    if _asks(config["miner"]):
        makers["miner.prompt"] = LLMMiner, config["miner"].get("prompt")
    return [
        f"{name}: {problem}"
        for name, (make, prompt) in makers.items()
        for problem in _said_by(partial(make, prompt=prompt, client=None))
    ]


def _miner_mistakes(config: Mapping[str, Any]) -> list[str]:
    """What a miner of embexp's own that asks no LLM says of its values."""
    miner = config["miner"]
    if _asks(miner) or not isinstance(miner, Mapping) or not str(miner.get("_target_")).startswith("embexp.mine."):
        return []
    return _said_by(lambda: _built(config, "miner")(client=None))


def _asks(miner: Any) -> bool:
    return isinstance(miner, Mapping) and miner.get("_target_") == "embexp.mine.llm.LLMMiner"


def _not_there(config: Mapping[str, Any]) -> list[str]:
    """What the config names and the machine lacks: files, the key, a price. Else found when documents are read."""
    from embexp.mine import documents, real

    places = [config["documents"]] if isinstance(config["documents"], str) else config["documents"] or []
    problems = documents.missing([str(place) for place in places])
    if isinstance(config["real_questions"], str) and config["real_questions"] != "dataset":
        problems += filter(None, [real.missing(config["real_questions"])])
    asks = _asks(config["miner"]) or config["judge"] is True or config["complete"]
    if asks and not config["dry_run"]:
        problems += _said_by(lambda: _built(config, "llm").key())
    if asks and isinstance(config["budget"], Mapping) and config["budget"].get("usd") is not None:
        problems += _said_by(lambda: _refuse_unpriced(config))
    return problems


def _refuse_unpriced(config: Mapping[str, Any]) -> None:
    server = _built(config, "llm")
    if problem := unpriced(server.model, server.prices(config["prices"]["models"])):
        raise UserError(problem)


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
# the same for a command that is about to start, not one that only shows its config
STARTING = replace(MINE, further=lambda config: [*_mistakes_of_mining(config), *_not_there(config)])
