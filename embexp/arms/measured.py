"""All arms of a run, scored on the same sets: the further ones, that it is asked for, are made here, and their costs.

Called by `experiment`, which makes BM25, base and tuned; `arms.choice` says which arm to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from embexp.arms import choice as arm_choice
from embexp.arms.costs import PASSAGES, QUESTIONS, Serving, costs, training_seconds
from embexp.arms.learning_curve import LearningCurve
from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.encoding.encoder import Encoder
from embexp.errors import UserError
from embexp.evaluation.evaluators import Evaluation
from embexp.evaluation.search import BM25, Arm, Dense, Hybrid
from embexp.forgetting import merging
from embexp.forgetting.guard import Guard, Score
from embexp.models.embedding_model import EmbeddingModel
from embexp.models.facts import facts_of
from embexp.reranking.reranker import rerank
from embexp.results import result as results
from embexp.rows.shapes import Rows
from embexp.stages import Timer
from embexp.training import tuning
from embexp.training.looks import Plan
from embexp.training.tuning import Run

# simple ones first: among equals the first is chosen
NAMES = (
    "bm25", "base", "hybrid_base", "adapter", "tuned", "fully_tuned", "merged", "hybrid_tuned", "reranked",
)  # fmt: skip

Merge = dict[str, Any]  # shares and the chosen one, as result.json has them


class MeasuredArms:
    """Scores arms; makes those that the config asks for under `arms` and `reranker`, and the learning curve.

    It is told of each model as the run comes to it: models are trained in place, so the base is there but once.
    keyword: BM25, with which hybrids fuse. found: what was measured, by arm and side.
    """

    def __init__(
        self, run: Run, splits: Splits, sides: Mapping[str, RetrievalSet], score: Score, guard: Guard | None,
        stage: Timer,
    ) -> None:  # fmt: skip
        """sides: dev and test. score: measures an arm on a set. guard: has its say in merging. Raises UserError where
        there is no dev to choose arms by."""
        self._run, self._splits, self._sides, self._stage = run, splits, sides, stage
        self._score_on, self._guard = score, guard
        self.keyword = BM25()
        self.found: dict[str, dict[str, Evaluation]] = {}
        self._asked: frozenset[str] = frozenset(run.config["arms"])
        self._serving: dict[str, Serving] = {"bm25": Serving(None)}
        self._training_s: dict[str, float] = {"bm25": 0.0, "base": 0.0}
        self._learner: EmbeddingModel | None = None
        self._before: merging.Weights = {}
        self._curve: LearningCurve | None = None
        if self._asked and not splits.dev.queries:
            raise UserError("arms are chosen by dev, and the data set has no dev questions; set arms=[]")

    @property
    def on_test(self) -> dict[str, Evaluation]:
        """What was measured on test, by arm."""
        return {name: sides["test"] for name, sides in self.found.items()}

    def measure(self, name: str, arm: Arm) -> dict[str, dict[str, float] | None]:
        """Score an arm on dev and test, and on the guard set as it asks for; the metrics by side."""
        self.found[name] = self._score(arm)
        if self._guard is not None:
            self._guard.measure(name, arm)
        return results.metrics_of(self.found[name], self._splits)

    def on_dev(self, arm: Arm) -> float:
        """The primary metric of an arm on dev."""
        return self._score_on(arm, self._splits.dev).metrics[self._run.config["metric"]]

    def _score(self, arm: Arm) -> dict[str, Evaluation]:
        return {side: self._score_on(arm, data) for side, data in self._sides.items()}

    def of_base(self, model: EmbeddingModel, encoder: Encoder) -> None:
        """The base has been scored."""
        if self._asked:
            self._serving["base"] = Serving(_served(model))
            self._hybrid("base", encoder)

    def before_training(
        self, learner: EmbeddingModel, encoder: Encoder, train_set: RetrievalSet, rows: Rows, plan: Plan,
        untrained: Mapping[str, float],
    ) -> None:  # fmt: skip
        """The base is about to be trained as `learner`: an adapter is trained behind it first, kept in arms/adapter.

        encoder: of the base. train_set, rows, plan, untrained: see `tuning.tune`.
        """
        config = self._run.config
        if config["learning_curve"]:
            self._curve = LearningCurve(self._run, self._splits, train_set, rows, plan, untrained)
        if config["merge"] or "merged" in self._asked:
            self._before = merging.weights_of(learner)
        if "adapter" not in self._asked:
            return
        chosen = dict(config["adapter_arm"])
        base = replace(learner, adapter=chosen.pop("kind"), lora=None)
        arguments = {**config["trainer"], **chosen}
        with self._stage("adapter"), tuning.beside(self._run, "adapter", trainer=arguments) as beside:
            head = tuning.learner(base, encoder, rows)
            found = tuning.tune(head, train_set, rows, plan, beside, untrained=untrained)
            tuning.save(head, self._run.folder / "arms" / "adapter", run=self._run.folder.name)
            self.found["adapter"] = self._score(Dense(found))
            self._training_s["adapter"] = training_seconds(beside.folder / "metrics.jsonl")
        self._serving["adapter"] = Serving(_served(head))

    def merge(self, model: EmbeddingModel, encoder: Encoder, *, shares: Sequence[float]) -> tuple[Encoder, Merge]:
        """Leave the trained model with the best share of its change, once; see `merging.merge`."""
        mixture, self._before = merging.Mixture(model, self._before), {}
        return merging.merge(mixture, encoder, shares=shares, on_dev=self.on_dev, guard=self._guard)

    def of_tuned(self, model: EmbeddingModel, encoder: Encoder) -> None:
        """The tuned model has been scored and saved."""
        self._learner = model
        if not self._asked:
            return
        served = Serving(_served(model))
        if model.base is None:  # trained in place: the base has the same network, and is measured as one with it
            for name in {"base", "hybrid_base"} & self._serving.keys():
                self._serving[name] = replace(self._serving[name], model=served.model)
        seconds = training_seconds(self._run.folder / "metrics.jsonl")
        for name in {"fully_tuned", "tuned"} & self.found.keys():
            self._serving[name], self._training_s[name] = served, seconds
        self._training_s["tuned"] += self._run.result["seconds"].get("merging", 0.0)
        self._hybrid("tuned", encoder)

    def rerank(self, encoder: Encoder, train_set: RetrievalSet, source: Any) -> None:
        """Re-order the first passages of the tuned model, or of the base, where the config names a reranker.

        encoder: of that model. source: what the config's model is built as. Fills in `reranker` of the result.
        """
        config, seconds = self._run.config, self._run.result["seconds"]
        if config["reranker"] is None:
            return
        self.found["reranked"], scorer = rerank(
            self._run, source, Dense(encoder), train_set, self._splits, self._sides, self._score_on, self._stage
        )
        if self._asked:
            of = "tuned" if "tuned" in self.found else "base"
            trained = seconds["reranker"] if "negatives" in config["reranker"] else 0.0
            self._serving["reranked"] = replace(self._serving[of], scorer=scorer, depth=config["reranker"]["depth"])
            self._training_s["reranked"] = round(self._training_s[of] + trained, 2)

    def finish(self, encoder: Encoder, *, base: Callable[[], EmbeddingModel]) -> None:
        """What comes last: the arm `merged`, which changes the weights, costs, the learning curve, the comparison.

        encoder: of the run's own model. base: loads the base anew. Fills in `arms`, `arms_verdict`, `learning_curve`.
        """
        merged = self._merged(encoder) if "merged" in self._asked else None
        spent = self._costs(encoder) if self._asked else {}
        if self._curve is not None:
            with self._stage("learning curve"):
                whole = self.found.get("fully_tuned", self.found["tuned"])
                self._run.result["learning_curve"] = self._curve.measured(base, self._score, whole)
        if self._asked:
            with self._stage("arms"):
                metric, margin = (self._run.config[key] for key in ("metric", "margin"))
                found = compared(self.found, spent, self._splits, metric=metric, margin=margin)
                if merged is not None:
                    found["arms"]["merged"]["merge"] = merged
                self._run.result.update(found)

    def _hybrid(self, name: str, encoder: Encoder) -> None:
        if "hybrid" not in self._asked:
            return
        with self._stage(f"hybrid_{name}"):
            self.found[f"hybrid_{name}"] = self._score(Hybrid(self.keyword, Dense(encoder)))
        self._serving[f"hybrid_{name}"] = Serving(self._serving[name].model, keyword=True)
        self._training_s[f"hybrid_{name}"] = self._training_s[name]

    def _merged(self, encoder: Encoder) -> Merge:
        model, seconds = self._learner, self._run.result["seconds"]
        assert model is not None
        with self._stage("merged"):
            mixed, told = self.merge(model, encoder, shares=merging.SHARES)
            tuning.save(model, self._run.folder / "arms" / "merged", run=self._run.folder.name)
            self.measure("merged", Dense(mixed))
        self._serving["merged"] = self._serving["tuned"]
        self._training_s["merged"] = round(self._training_s["tuned"] + seconds["merged"], 2)
        return told

    def _costs(self, encoder: Encoder) -> dict[str, dict[str, float]]:
        test = self._splits.test
        with self._stage("costs"):
            vectors = encoder.passages(list(test.corpus.values()))  # embedded before merging, which changes the weights
            questions = list(test.queries.values())
            spent = costs(self._serving, test.corpus, questions, vectors, seed=self._run.config["seed"])
        return {name: {"training_s": self._training_s[name], **asdict(cost)} for name, cost in spent.items()}


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
    from embexp.models.adapters import whole

    together = whole(model)
    return replace(model.base, loaded=lambda: together, facts=facts_of(together), processes=None)
