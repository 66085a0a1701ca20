"""The arms beside BM25, base and tuned that a run is asked for: made, scored on the same sets, and compared with costs.

Called by `experiment`, which scores the first three; `arm_choice` says which arm to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from embexp import arm_choice, tuning
from embexp import result as results
from embexp.arms import Arm, Dense, Hybrid
from embexp.costs import PASSAGES, QUESTIONS, Serving, costs, training_seconds
from embexp.encoding import Encoder
from embexp.errors import UserError
from embexp.evaluators import Evaluation
from embexp.looks import Plan
from embexp.model_facts import facts_of
from embexp.models import EmbeddingModel
from embexp.retrieval_set import RetrievalSet, Splits
from embexp.shapes import Rows
from embexp.stages import Timer
from embexp.tuning import Run

# in the order of their parts, simple ones first: among equals the first is chosen
NAMES = ("bm25", "base", "hybrid_base", "adapter", "tuned", "hybrid_tuned", "merged", "reranked")
Scored = Callable[[str, Arm], None]  # scores an arm on dev and test, under a name


class FurtherArms:
    """What a run's config asks for under `arms`; where that is nothing, nothing is done.

    It is told of each model as the run comes to it: models are trained in place, so the base is there but once.
    """

    def __init__(self, run: Run, splits: Splits, stage: Timer, scored: Scored, keyword: Arm) -> None:
        """keyword: the arm that hybrids fuse with. Raises UserError where there is no dev to choose by."""
        self._run, self._splits, self._stage, self._scored, self._keyword = run, splits, stage, scored, keyword
        self._asked: frozenset[str] = frozenset(run.config["arms"])
        self._serving: dict[str, Serving] = {}
        self._training_s: dict[str, float] = {"bm25": 0.0, "base": 0.0}
        self._encoder: Encoder | None = None  # whose vectors of the corpus are searched to see what a question costs
        if self._asked and not splits.dev.queries:
            raise UserError("arms are chosen by dev, and the data set has no dev questions; set arms=[]")

    def of_base(self, model: EmbeddingModel, encoder: Encoder) -> None:
        """The base has been scored."""
        if not self._asked:
            return
        self._encoder = encoder
        self._serving |= {"bm25": Serving(None), "base": Serving(_served(model))}
        self._hybrid("base", encoder)

    def adapter(
        self, model: EmbeddingModel, encoder: Encoder, train_set: RetrievalSet, rows: Rows, plan: Plan,
        untrained: Mapping[str, float],
    ) -> None:  # fmt: skip
        """Train an adapter behind the base, which must still be as it was; keep it in arms/adapter."""
        if "adapter" not in self._asked:
            return
        chosen = dict(self._run.config["adapter_arm"])
        base = replace(model, adapter=chosen.pop("kind"), lora=None)
        arguments = {**self._run.config["trainer"], **chosen}
        with self._stage("adapter"), tuning.beside(self._run, "adapter", trainer=arguments) as beside:
            head = tuning.learner(base, encoder, rows)
            found = tuning.tune(head, train_set, rows, plan, beside, untrained=untrained)
            tuning.save(head, self._run.folder / "arms" / "adapter", run=self._run.folder.name)
            self._scored("adapter", Dense(found))
            self._training_s["adapter"] = training_seconds(beside.folder / "metrics.jsonl")
        self._serving["adapter"] = Serving(_served(head))

    def of_tuned(self, model: EmbeddingModel, encoder: Encoder) -> None:
        """The tuned model has been scored."""
        if not self._asked:
            return
        self._encoder = encoder
        self._serving["tuned"] = Serving(_served(model))
        if model.base is None:  # trained in place: the base's network is the same, only its weights were others
            self._serving |= {name: Serving(self._serving["tuned"].model, bool(arm.keyword))
                              for name, arm in self._serving.items() if name in ("base", "hybrid_base")}  # fmt: skip
        self._training_s["tuned"] = training_seconds(self._run.folder / "metrics.jsonl")
        self._hybrid("tuned", encoder)

    def _hybrid(self, name: str, encoder: Encoder) -> None:
        if "hybrid" not in self._asked:
            return
        with self._stage(f"hybrid_{name}"):
            self._scored(f"hybrid_{name}", Hybrid(self._keyword, Dense(encoder)))
        self._serving[f"hybrid_{name}"] = Serving(self._serving[name].model, keyword=True)
        self._training_s[f"hybrid_{name}"] = self._training_s[name]

    def compare(self, arms: Mapping[str, Mapping[str, Evaluation]]) -> None:
        """Write the keys `arms` and `arms_verdict` of the result. arms: what was measured, by name and split."""
        if not self._asked:
            return
        config, test = self._run.config, self._splits.test
        with self._stage("costs"):
            assert self._encoder is not None
            vectors = self._encoder.passages(list(test.corpus.values()))
            questions = list(test.queries.values())
            spent = costs(self._serving, test.corpus, questions, vectors, seed=config["seed"])
        with self._stage("arms"):
            cost = {name: {"training_s": self._training_s[name], **asdict(spent[name])} for name in spent}
            found = compared(arms, cost, self._splits, metric=config["metric"], margin=config["margin"])
            self._run.result.update(found)


def compared(
    arms: Mapping[str, Mapping[str, Evaluation]],
    cost: Mapping[str, Mapping[str, Any]],
    splits: Splits,
    *,
    metric: str,
    margin: float,
) -> dict[str, Any]:
    """The keys `arms` and `arms_verdict` of a result.

    arms: name -> split -> evaluation. cost: name -> training_s, index_s, index_mib, query_ms. metric: of the choice.
    """
    document_of = {query: splits.test.document_of(query) for query in splits.test.queries}
    names = [name for name in NAMES if name in arms]
    test = {name: results.judged(arms[name]["test"], splits) for name in names}
    metrics = {name: results.metrics_of(arms[name], splits) for name in names}
    dev = {name: arms[name]["dev"].scores[metric].score for name in names}
    best = arm_choice.best_on(dev)
    deltas = arm_choice.against(test["base"], _but("base", test), document_of=document_of)
    primary = {name: {metric: scores[metric]} for name, scores in test.items()}
    against_best = arm_choice.against(primary[best], _but(best, primary), document_of=document_of)
    chosen = {name: by_metric[metric] for name, by_metric in against_best.items()}
    measured_on = {"passages": min(PASSAGES, len(splits.test.corpus)), "of": len(splits.test.corpus)}
    measured_on["questions"] = min(QUESTIONS, max(1, len(splits.test.queries) - 1))
    return {
        "arms": {
            name: {
                **metrics[name],
                "cost": dict(cost[name]),
                "delta": arm_choice.described(deltas[name]) if name in deltas else None,
                "against_best": arm_choice.described(against_best[name]) if name in against_best else None,
            }
            for name in names
        },
        "arms_verdict": {
            "metric": metric,
            **arm_choice.verdict(dev, chosen, cost, margin=margin),
            "measured_on": measured_on,
        },
    }


def _but(name: str, arms: Mapping[str, Any]) -> dict[str, Any]:
    return {other: scores for other, scores in arms.items() if other != name}


def _served(model: EmbeddingModel) -> EmbeddingModel:
    """The model as it is used elsewhere: in one process, an adapter behind its base."""
    if model.base is None:
        return replace(model, processes=None)
    from embexp.adapters import whole

    together = whole(model)
    return replace(model.base, loaded=lambda: together, facts=facts_of(together), processes=None)
