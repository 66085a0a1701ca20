"""Retraining, top to bottom: run -> today's passages -> mine only what is new -> train -> compare -> promote, or say
why not.

Read this module first; every step is one call into the module that does it. Each step leaves something whole behind, by
which the next call knows that it was done. Called by `retrain.cli`.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from embexp import __version__, cli
from embexp.cache import digest
from embexp.config.checks import CONFIG_FOLDER
from embexp.data import manifest
from embexp.data.manifest import Manifest
from embexp.data.retrieval_set import Splits
from embexp.data.splits import Shares
from embexp.drift import shown as drift_shown, today
from embexp.drift.differences import Differences, between
from embexp.drift.drifting import drift
from embexp.drift.today import Today
from embexp.drift.verdict import LEVELS
from embexp.errors import UserError
from embexp.exit_codes import FORGOTTEN
from embexp.experiment import splits_of
from embexp.reporting.report import read as read_result
from embexp.results.finished import Finished, opened
from embexp.retrain import attempts, recipe
from embexp.retrain.attempts import Attempt
from embexp.retrain.comparing import compared, fair_of
from embexp.retrain.decision import Decision, decided
from embexp.retrain.pointer import PROMOTED, STARTED, Models
from embexp.retrain.recipe import Recipe
from embexp.retrain.renewed import UNKNOWN, former_of, learnt_by, new_to_train, refuse_cut_anew, renewed
from embexp.retrain.unread import refuse_lost

log = logging.getLogger(__name__)

NOTHING, NOT_PROMOTED = "nothing to do", "not promoted"
DONE_ALREADY = "these documents were trained on already, with the same settings (`status` shows what came of it)"
NO_NEW_QUESTIONS = (
    "no new question to train on came of what is new: its documents are held out, or all their questions were dropped "
    "(mining.md of its data set says where they went)"
)


@dataclass(frozen=True)
class Outcome:
    """How it ended: `promoted`, `not promoted` or `nothing to do`, with the reasons and what would help.

    current: the folder of the run that is served now. attempt: what was trained, where something was.
    """

    event: str
    current: Path
    reasons: Sequence[str]
    advice: Sequence[str] = ()
    attempt: Attempt | None = None
    removed: Sequence[str] = field(default=())


def retrain(run: Path, models: Models, words: Sequence[str], config: Mapping[str, Any]) -> Outcome:
    """Train a model of today's documents, and let `current` lead to it where it is better.

    run: the first model's, where there is no current one yet. words: overrides of the experiment. Raises UserError for
    what the user can mend, and BusyError where another process is at work on the models.
    """
    with models.alone():
        current = _current(run, models)
        known = manifest.read(current.folder)
        now = today.read(current, known, config["documents"])
        if config["start"] == "tuned":
            refuse_cut_anew(now)
        differences = between(known, now.texts, now.units)
        refuse_lost(known, now, differences)
        if not differences.fresh and not _new_questions(current, now):
            return Outcome(NOTHING, current.folder, [_unchanged(differences, now)])
        asked = _asked(now, words, config)
        if (reasons := _too_little_drift(current, models, now, asked, config)) is not None:
            return Outcome(NOTHING, current.folder, reasons)
        attempt = attempts.open_for(models, asked, margin=config["margin"])
        if attempt is None:
            return Outcome(NOTHING, current.folder, [_done_already(models)])

        former = former_of(current, known, [each for each in attempts.all_in(models) if each.folder != attempt.folder])
        data = renewed(current, known, now, attempt, former, config)
        if former is not None and not new_to_train(_own_data(current, former), attempt.data):
            return _ended(models, current, attempt, Decision(False, [NO_NEW_QUESTIONS], []), config)
        start = recipe.start_from(current.folder, words) if config["start"] == "tuned" else []
        new = _trained(current, attempt, recipe.of(current.folder, words), data, start)
        splits, fair = _to_compare_on(current, new, known, attempt)
        found = compared(current, new, splits, fair, differences)
        attempt.write(compared=found, base=new.result["base"]["test"], bm25=new.result["bm25"]["test"])
        decision = decided(found, margin=config["margin"], forgetting=new.result.get("forgetting"))
        return _ended(models, current, attempt, decision, config)


def _current(run: Path, models: Models) -> Finished:
    """The run that is served, once what a kill left half done is ended. Raises UserError for one without a model."""
    models.repair()
    last = attempts.last(models)
    decision = last.decision if last is not None else None
    if last is not None and decision and decision["promoted"] and models.name_of(last.run) not in models.served():
        models.turn(PROMOTED, last.run, decision["reasons"])
    served = models.current
    current = opened(str(served or run.resolve()))
    if not current.has_model:
        raise UserError(f"{run} trained no model that could be served (trainer=none); name a run that has one")
    if current.config["limit"] is not None:
        raise UserError(f"{run} was a try with limit={current.config['limit']}; name a whole run")
    if served is None:
        models.turn(STARTED, current.folder, ["the first model of this folder"])
    return current


def _new_questions(current: Finished, now: Today) -> bool:
    """Whether questions of a data set that was not mined are new or others than the current model's run read."""
    return now.data is not None and any(current.result["fingerprint"][key] != found for key, found in now.data.items())


def _unchanged(differences: Differences, now: Today) -> str:
    questions = " and no question" if now.data is not None else ""
    gone = f"; {len(differences.removed):,} are gone, which the index alone must know" if differences.removed else ""
    return f"no passage{questions} is new or changed since the current model{gone}"


def _asked(now: Today, words: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """All that a new model comes of, as plain values."""
    users = config["real_questions"]
    return {
        "passages": digest([now.texts, dict(now.units)]),
        **({} if now.data is None else {"data": now.data}),
        "words": list(words),
        "start": config["start"],
        "budget": dict(config["budget"]),
        "real_questions": None if users is None else hashlib.sha256(Path(users).expanduser().read_bytes()).hexdigest(),
    }


def _done_already(models: Models) -> str:
    """Why there is nothing to do where the last attempt was asked the same: it trained, or why it did not."""
    last = attempts.last(models)
    if last is None or last.decision is None or last.state.get("trained"):
        return DONE_ALREADY
    return str(last.decision["reasons"][0])


def _too_little_drift(
    current: Finished, models: Models, now: Today, asked: Mapping[str, Any], config: Mapping[str, Any]
) -> list[str] | None:
    """Why nothing is to be done, where drift does not ask for it; None where it does, or was asked before a kill."""
    wanted, last = config["if_drift"], attempts.last(models)
    if wanted is None or (last is not None and last.decision is None and last.state["asked"] == asked):
        return None
    settings: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / "drift.yaml"))  # type: ignore[assignment]
    own = {"documents": config["documents"], "queries": config["queries"], "out": str(models.folder)}
    own["allowed_packages"] = list(config["allowed_packages"])
    record, out = drift(str(current.folder), {**settings, **own}, now=now)
    drift_shown.write(record, out)
    if LEVELS.index(record["verdict"]) >= LEVELS.index(wanted):
        return None
    return [f"drift: {record['verdict']}, and if_drift={wanted} waits for that", *record["reasons"]]


def _own_data(current: Finished, former: Path) -> Path:
    """The data set that the current model was trained on, where it is still there."""
    with current.started_from():
        own = Path(current.config["dataset"]["path"]).absolute()
    return own if (own / "mining.json").is_file() else former


def _trained(current: Finished, attempt: Attempt, made: Recipe, data: Sequence[str], start: Sequence[str]) -> Finished:
    """The attempt's run, completed: begun, gone on with, or done already. Raises UserError when training fails."""
    command = made.command(data, start, attempt.run)
    told = {"command": command, "embexp": __version__}
    if attempt.state.get("trained") != told:
        shutil.rmtree(attempt.run, ignore_errors=True)
        attempt.write(trained=told, **{recipe.WORDS: list(made.words)})
    if _status(attempt.run) != "completed":
        if (attempt.run / "metrics.jsonl").is_file():
            command = [f"resume={attempt.run}"]
        else:
            shutil.rmtree(attempt.run, ignore_errors=True)  # killed before it had done anything
        log.info("training ...")
        with current.started_from():
            code = cli.command(command)
        if code not in (0, FORGOTTEN):  # a gate that was not passed is for the decision
            raise UserError(f"the training in {attempt.run} failed, as said above; the same command goes on with it")
    return opened(str(attempt.run))


def _to_compare_on(current: Finished, new: Finished, known: Manifest, attempt: Attempt) -> tuple[Splits, set[str]]:
    """The new run's data, and those of its test questions that neither model was trained on."""
    learnt = learnt_by(current, known, attempt)
    with new.started_from():
        splits = splits_of(new.config)
    if known.mining is None:
        attempt.keep_trained(splits.train.queries)
    if learnt is None:
        attempt.write(remarks=[*attempt.state["remarks"], UNKNOWN])
    shares = new.config["dataset"].get("split") or {}
    near_duplicate = shares.get("near_duplicate", Shares.near_duplicate)  # as the run's own check of leaks
    return splits, fair_of(splits, known, learnt or {}, near_duplicate=near_duplicate)


def _status(run: Path) -> str | None:
    result = read_result(run)
    return None if result is None else result["status"]


def _ended(
    models: Models, current: Finished, attempt: Attempt, decision: Decision, config: Mapping[str, Any]
) -> Outcome:
    """Write the decision, turn the pointer where the new model is promoted, and remove what `keep` does not keep."""
    told = {**asdict(decision), "margin": config["margin"], "against": models.name_of(current.folder)}
    attempt.write(decision=told, times=attempt.times + bool(attempt.state.get("compared")))
    if decision.promoted:
        models.turn(PROMOTED, attempt.run, decision.reasons)
    removed = attempts.prune(models, keep=config["keep"])
    served = attempt.run if decision.promoted else current.folder
    event = PROMOTED if decision.promoted else NOT_PROMOTED
    return Outcome(event, served, decision.reasons, decision.advice, attempt, removed)
