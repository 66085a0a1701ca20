"""What training costs elsewhere: a guard set, scored before and after it. Fills in `forgetting` in result.json.

Read by `preparing`. Any data set will do: its test is scored and its dev, where it has one, by which `merging` may
choose. Nothing of it is trained on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from embexp.cache import digest
from embexp.config.components import build
from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.data.splits import asked, halved, limited, only_test, trainable
from embexp.errors import UserError, counted
from embexp.evaluation.evaluators import Evaluation
from embexp.evaluation.search import Arm
from embexp.evaluation.significance import Scores, compare

log = logging.getLogger(__name__)

Config = Mapping[str, Any]
Score = Callable[[Arm, RetrievalSet], Evaluation]
MEASURED = ("base", "fully_tuned", "tuned", "merged")
ROUNDING = 1e-9  # scores that differ by less are equal
HALF = "the guard set {name} has no dev, so half of its queries ({dev}) choose the share and the other half is reported"
SHARED = (
    "of the guard set {name} {passages} and {queries} are also in what is trained on, so that it says little of what "
    "is forgotten; choose another guard_dataset"
)


@dataclass(frozen=True)
class Guard:
    """A guard set and what was measured on it.

    sides: dev and test, as there are, each as sets with a corpus of their own, whose scores are averaged. score: an arm
    on a set. metric: the primary one. told: where it is written, `forgetting` of the result.
    """

    sides: Mapping[str, Sequence[RetrievalSet]]
    score: Score
    metric: str
    told: dict[str, Any]
    _found: dict[str, dict[str, Evaluation]] = field(default_factory=dict)

    @property
    def sets(self) -> list[RetrievalSet]:
        """All that is scored."""
        return [data for sets in self.sides.values() for data in sets]

    def measure(self, name: str, arm: Arm) -> None:
        """Score one of MEASURED, and compare base and tuned once both are there; of other arms nothing is measured.

        Raises UserError where the primary metric can't be averaged over the sets.
        """
        if name not in MEASURED:
            return
        self._found[name] = {side: self._scored(arm, sets) for side, sets in self.sides.items()}
        self.told[name] = {side: evaluation.metrics for side, evaluation in self._found[name].items()}
        if name == "tuned" and "test" in self.sides:
            self.told.update(self._compared())

    def on_dev(self, arm: Arm) -> float | None:
        """The primary metric on the guard's dev; None where it has none."""
        return self._scored(arm, self.sides["dev"]).metrics[self.metric] if "dev" in self.sides else None

    @property
    def at_least(self) -> float | None:
        """What weights must score on the guard's dev to lose no more than `max_forgetting`; None where none is set."""
        if "dev" not in self.sides or self.told["max_forgetting"] is None:
            return None
        return float(self.told["base"]["dev"][self.metric]) - self.told["max_forgetting"]

    def _scored(self, arm: Arm, sets: Sequence[RetrievalSet]) -> Evaluation:
        found = averaged([self.score(arm, data) for data in sets])
        if self.metric not in found.scores:
            raise UserError(
                f"metric={self.metric} is no mean over queries, so it can't be averaged over the {len(sets)} sets of "
                "guard_dataset; name one of them (guard_dataset.subsets=[NanoNQ]), or set metric=recall@10"
            )
        return found

    def _compared(self) -> dict[str, Any]:
        base, tuned = (self._found[name]["test"].scores for name in ("base", "tuned"))
        document_of = {query: data.document_of(query) for data in self.sides["test"] for query in data.queries}
        deltas = {name: asdict(delta) for name, delta in compare(base, tuned, document_of=document_of).items()}
        most = self.told["max_forgetting"]
        lost = -deltas[self.metric]["absolute"]
        return {"delta": deltas, "passed": None if most is None else bool(lost <= most + ROUNDING)}


def averaged(parts: Sequence[Evaluation]) -> Evaluation:
    """The mean of the parts' scores, each part counting alike however many queries it has, as NanoBEIR's means do.

    Their query ids differ. A metric that is no mean over queries is left out, unless there is one part.
    """
    if len(parts) == 1:
        return replace(parts[0], ranking=None)
    scores = {}
    for name in parts[0].scores:
        each = [part.scores[name] for part in parts]
        values = [one.values for one in each if one.values is not None]
        if len(values) == len(each):
            items = sum(map(len, values))
            weighted = [one * (items / (len(values) * len(one))) for one in values]
            scores[name] = Scores([query for one in each for query in one.query_ids], np.concatenate(weighted))
    return Evaluation(scores)


def guard_of(config: Config, splits: Splits, result: dict[str, Any], score: Score, *, tests: bool) -> Guard | None:
    """The guard set that the config names, read, with `forgetting` of the result begun; None where it names none.

    splits: what is trained on; what the guard set shares with it is noted in the result. tests: whether test may be
    scored, which a trial's may not. Raises UserError where it can't be had.
    """
    node = config["guard_dataset"]
    if node is None:
        return None
    guard = _read(node, config["allowed_packages"])
    name = str(node["_target_"]).rpartition(".")[0].rpartition(".")[2]
    test = list(guard.apart or [guard.test])
    if config["limit"] is not None:
        test = [limited(only_test(data), config["limit"]).test for data in test]
        guard = limited(guard, config["limit"])
    dev = [guard.dev] if guard.dev.queries else []
    chooses = (bool(config["merge"]) or "merged" in config["arms"]) and config["max_forgetting"] is not None
    if chooses and not dev:
        dev, test = map(list, zip(*map(halved, test), strict=True))
        result["notes"].append(HALF.format(name=name, dev=sum(len(data.queries) for data in dev)))
    sides = {**({"dev": dev} if dev else {}), **({"test": test} if tests else {})}
    result["forgetting"] = {
        "dataset": name,
        **dict.fromkeys((*MEASURED, "delta", "passed")),
        "queries": {side: sum(len(data.queries) for data in sets) for side, sets in sides.items()},
        "max_forgetting": config["max_forgetting"],
        "origin": dict(guard.origin),
    }
    found = Guard(sides, score, config["metric"], result["forgetting"])
    result["forgetting"]["content"] = digest([data.digest for data in found.sets])
    log.info("guard set %s: %s", name, result["forgetting"]["queries"])
    _note_shared(name, [*dev, *test], trainable(splits), result)
    return found


def _read(node: Config, allowed: Sequence[str]) -> Splits:
    try:
        guard: Splits = build(node, allowed=allowed)
    except UserError as error:  # loaders name the settings of `dataset`
        raise UserError(
            *(re.sub(r"\bdataset(?=[.=])", "guard_dataset", problem) for problem in error.problems)
        ) from error
    return guard


def _note_shared(name: str, sets: Sequence[RetrievalSet], train: RetrievalSet, result: dict[str, Any]) -> None:
    trained = {text.strip() for text in train.corpus.values()}
    asks = {asked(text) for text in train.queries.values()}
    passages = {text.strip() for data in sets for text in data.corpus.values()} & trained
    queries = {asked(text) for data in sets for text in data.queries.values()} & asks
    if passages or queries:
        shared = {"passages": counted(len(passages), "passage"), "queries": counted(len(queries), "query", "queries")}
        result["notes"].append(SHARED.format(name=name, **shared))
        log.warning("note: %s", result["notes"][-1])
