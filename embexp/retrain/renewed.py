"""Today's data set: the former one with what is new mined, or the source read again. Called by `retraining`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embexp.data.manifest import Manifest
from embexp.drift.today import Today, mining_of, places_of, replaced
from embexp.errors import UserError, counted
from embexp.experiment import splits_of
from embexp.mine import written
from embexp.mine.mining import mine
from embexp.results.finished import Finished
from embexp.results.result import data_digests
from embexp.resume import quoted
from embexp.retrain import unread
from embexp.retrain.attempts import Attempt, of_run

log = logging.getLogger(__name__)

UNKNOWN = (
    "what the current model was trained on is no longer at hand (the file of its data set has changed since), so that "
    "a question on a new document may be one that it has learnt; from this attempt on it is kept"
)
NOT_MINED = (
    "the run's data set was not mined, and so nothing was now: it was read again from today's copy and cut anew. "
    "Questions on documents that the current model was trained on are left out of the comparison"
)


def renewed(
    run: Finished, known: Manifest, now: Today, attempt: Attempt, former: Path | None, config: Mapping[str, Any]
) -> list[str]:
    """Make today's data set in the attempt's folder, where it must be mined; returns the overrides that name it.

    former: the mined data set that is gone on from. What there is to say goes into the attempt's remarks. Raises
    UserError where mining was stopped by something else than its budget; the same call goes on.
    """
    places = places_of(config["documents"])
    if known.mining is None or former is None:
        node = replaced(run.config["dataset"], places)
        key = "packages" if "packages" in node else "path"
        value = f"[{','.join(quoted(place) for place in places)}]" if key == "packages" else quoted(places[0])
        attempt.write(remarks=[NOT_MINED])
        return [f"dataset.{key}={value}"]
    if not (attempt.data / written.LAST).is_file():
        log.info("mining what is new ...")
        attempt.write(remarks=_mined(run, known.mining, now, attempt, former, places, config))
    before = attempt.state.get("remarks", [])
    attempt.write(remarks=[*before, *(line for line in unread.told(now) if line not in before)])
    return [f"dataset.path={quoted(attempt.data)}"]


def refuse_cut_anew(now: Today) -> None:
    """Raise UserError where a model that goes on from the current one would be tested on what that one has learnt."""
    if now.splits is not None and now.splits.parted is not None:
        raise UserError(
            "start=tuned goes on from the current model, and the data set is cut anew: documents that this model and "
            "those before it were trained on would be in dev and test. Use start=base, or a data set whose sides stay: "
            "a mined one, or one with a split of its own (dataset.columns.split of pairs, qrels of train and test of "
            "beir)"
        )


def former_of(run: Finished, known: Manifest, attempts: Sequence[Attempt]) -> Path | None:
    """The mined data set to go on from: the newest whole one, of whatever came the model, so that nothing is asked
    about twice; None where the run's data are not mined. Raises UserError when it is gone, or not what the run read:
    of data that were mined again the sides are others than what the current model was trained on."""
    if known.mining is None:
        return None
    for attempt in reversed(attempts):
        if attempt.decision is not None and (attempt.data / written.LAST).is_file():
            return attempt.data
    with run.started_from():
        folder = Path(run.config["dataset"]["path"]).expanduser().absolute()
    if not (folder / written.LAST).is_file():
        raise UserError(
            f"the data set that {run.folder} was trained on is no longer in {folder}, and it holds the questions to go "
            "on from. Bring it back, or mine all documents and train a new run on them"
        )
    run.splits(changed_data=False, by="mining all documents and training a new run on them")
    return folder


def _mined(
    run: Finished, mining: Mapping[str, Any], now: Today, attempt: Attempt, former: Path, places: Sequence[str],
    config: Mapping[str, Any],
) -> list[str]:  # fmt: skip
    """Mine, and say what is to be said of it."""
    own = mining["real_questions"] if mining["real_questions"] == "dataset" else None  # a file's stand in the former
    users = config["real_questions"]
    changed = {
        "real_questions": own if users is None else str(Path(users).expanduser().absolute()),
        "budget": dict(config["budget"]),
        "dry_run": False,
        "llm": {**mining["llm"], **{key: value for key, value in config["llm"].items() if value is not None}},
    }
    with run.started_from():
        outcome = mine({**mining_of(mining, places), **changed}, attempt.data, known=now.knowledge, before=former)
    log.info("%s", outcome.text)
    if outcome.stopped is None:
        return []
    if not outcome.larger or not (attempt.data / written.LAST).is_file():
        larger = "".join(f" budget.{name}={cap}" for name, cap in outcome.larger.items())
        hint = f" with{larger}" if larger else ""
        raise UserError(f"mining was stopped: {outcome.stopped}. The same command{hint} goes on where it was")
    return [f"not all that is new was asked about: {outcome.stopped}"]


def learnt_by(run: Finished, known: Manifest, attempt: Attempt) -> Mapping[str, str] | None:
    """Id -> text of what the current model was trained on and the attempt's own is not, or not for sure.

    None where that is not known: the data set was not mined, and its file has changed since.
    """
    if known.mining is not None:
        return written.learnt_before(attempt.data)
    before = of_run(run.folder)
    if before is not None and before.trained is not None:
        return before.trained
    with run.started_from():
        splits = splits_of(run.config)
    return splits.train.queries if data_digests(splits)["train"] == run.result["fingerprint"]["train"] else None


def new_to_train(former: Path, folder: Path) -> int:
    """How many training questions a mined data set has that another does not."""
    before, now = (set(written.read(each).of_side("train")) for each in (former, folder))
    log.info("%s to train on, %d of them new", counted(len(now), "question"), len(now - before))
    return len(now - before)
