"""A trial from the side of the run that carries it out: reports, pruning, the lease, how it ended.

Made from plain values in the run's own process, which may be on another machine. Called by `job`; `experiment` and
`fine_tuning` only see that something watches the run.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from embexp.config.components import build
from embexp.errors import FullError, NotNowError, Pruned, described, is_full
from embexp.reporting.report import dimension_of
from embexp.sweep.lease import BEAT, OWNER, PROCESS, renewed, this_process
from embexp.sweep.reference import TrialReference
from embexp.sweep.storage import is_away, opened, patiently

log = logging.getLogger(__name__)

SUPERSEDED = 75  # exit code of a process whose trial was given to another one
RESULT, REASON = "result", "reason"  # attributes of a trial
MEASURED: dict[str, Callable[[Mapping[str, Any]], float]] = {  # objectives that are no metric of dev
    "metric": lambda result: result["tuned"]["dev"][result["metric"]],
    "dimensions": lambda result: dimension_of(result["metric"]) or result["counts"]["dimensions"],
    "training_seconds": lambda result: result["seconds"]["training"],
}


@contextmanager
def attached(reference: TrialReference) -> Iterator[Trial]:
    """The trial, with its lease renewed. An error within it ends it as failed; an interruption leaves it as it is."""
    trial = patiently(partial(Trial, reference))
    patiently(trial.take)
    with renewed(trial.beat, seconds=reference.lease):
        try:
            yield trial
        except NotNowError:  # its former process is still there
            raise
        except Exception as error:
            if is_away(error) or is_full(error):
                raise not_now(error) from error
            trial.fail(described(error))
            raise


class Trial:
    """What watches the run of a trial; see TrialReference."""

    def __init__(self, reference: TrialReference) -> None:
        self._reference = reference
        self.looks = reference.looks
        self.scores_test = reference.confirms
        self._told = False
        pruner = build(reference.pruner, allowed=["optuna"]) if reference.pruner else optuna.pruners.NopPruner()
        self._study = optuna.load_study(
            study_name=reference.study,
            storage=opened(reference.address),
            sampler=RandomSampler(),  # what to try was decided before
            pruner=pruner,
        )
        self._storage = self._study._storage
        self._id = self._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, reference.number)
        self._trial = optuna.trial.Trial(self._study, self._id)

    def take(self) -> None:
        """Take the trial over from the process that has started this one."""
        self._end_if_superseded()
        self._set(PROCESS, this_process())
        self.beat()

    def beat(self) -> None:
        """Say that somebody is at work; ends the process where the trial was given to another."""
        try:
            if self._is_mine():
                self._set(BEAT, time.time())
            elif not self._told:
                self._end("was given to another process")
        except UpdateFinishedTrialError:
            if not self._told:
                self._end("was ended from outside")
        except Exception as error:  # a database that is being restarted
            log.warning("the trial's lease could not be renewed (%s); trying again", str(error).partition("\n")[0])

    def report(self, metrics: Mapping[str, float], look: int) -> None:
        """Tell the study of dev's metrics at a look. Raises Pruned when the study gives the trial up."""
        if self.scores_test or len(self._study.directions) > 1:  # Optuna prunes for one objective only
            return
        if self._reference.reported not in metrics:  # one that is known at the end alone
            return
        value = metrics[self._reference.reported]
        try:
            given_up = patiently(partial(self._given_up, value, look))
        except Exception as error:
            if is_away(error) or is_full(error):
                raise not_now(error) from error
            raise
        if given_up:
            raise Pruned(
                f"given up at look {look} at dev ({self._reference.reported} {value:.3f}): others did better there"
            )

    def tell(self, result: Mapping[str, Any]) -> None:
        """Tell the study how the run ended, with what its summary shows. result: the content of result.json."""
        patiently(partial(self._tell, result))

    def fail(self, reason: str) -> None:
        """Tell the study that the run could not be carried out, and why."""
        patiently(partial(self._fail, reason))

    def _given_up(self, value: float, look: int) -> bool:
        if look not in self._storage.get_trial(self._id).intermediate_values:  # else told before it was resumed
            self._trial.report(value, step=look)
        return self._trial.should_prune()

    def _tell(self, result: Mapping[str, Any]) -> None:
        self._end_if_superseded()
        self._set(RESULT, shown(result))
        self._told = True
        if result["status"] == "pruned":
            self._study.tell(self._reference.number, state=TrialState.PRUNED)
            return
        self._study.tell(self._reference.number, [measured(result, name) for name in self._reference.objectives])

    def _fail(self, reason: str) -> None:
        self._end_if_superseded()
        self._set(REASON, reason[:2000])
        self._told = True
        self._study.tell(self._reference.number, state=TrialState.FAIL)

    def _set(self, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._id, key, value)

    def _is_mine(self) -> bool:
        now = self._storage.get_trial(self._id)
        return now.state == TrialState.RUNNING and now.user_attrs.get(OWNER) == self._reference.owner

    def _end_if_superseded(self) -> None:
        if not self._is_mine():
            self._end("was given to another process")

    def _end(self, what: str) -> None:
        log.error("trial %d %s; this process ends", self._reference.number, what)
        os._exit(SUPERSEDED)  # at once: the other one writes to the same folder


def not_now(error: Exception) -> NotNowError:
    """Why the trial can't go on now, for a study that is away or a disk that is full."""
    if is_full(error):
        return FullError(described(error))
    return NotNowError("the study's database does not answer; the trial goes on when it does")


def measured(result: Mapping[str, Any], objective: str) -> float:
    """An objective of a completed run: a metric of the tuned model on dev, or one of MEASURED."""
    if objective in MEASURED:
        return float(MEASURED[objective](result))
    return float(result["tuned"]["dev"][objective])


def shown(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep's summary shows of a run."""
    metric = result["metric"]
    found: dict[str, Any] = {
        "status": result["status"],
        "seconds": round(sum(result["seconds"].values()), 1),
        "metric": metric,
        "base": result["base"]["dev"][metric] if result["base"] else None,
        "bm25": result["bm25"]["dev"].get(metric) if result["bm25"] else None,
        "notes": list(result["notes"]),
    }
    if result["tuned"]:
        found["dev"] = result["tuned"]["dev"][metric]
    if result["delta"]:
        delta = {key: result["delta"][metric][key] for key in ("absolute", "ci_low", "ci_high", "p_value")}
        found["test"] = {"base": result["base"]["test"][metric], "tuned": result["tuned"]["test"][metric], **delta}
        found["verdict"] = result["verdict"]
    return found
