"""Chooses what of dev is measured while training, and how often, so that it costs a set share of the training's time.

Called by `experiment`; `fine_tuning` counts steps with it. What it chooses depends on data, base model and config
alone, never on the clock, so that a resumed run looks as often as one that never stopped.
"""

from __future__ import annotations

import bisect
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embexp.cache import digest
from embexp.data.retrieval_set import RetrievalSet
from embexp.durable import write_whole
from embexp.encoding.tokens import lengths
from embexp.errors import counted
from embexp.evaluation.evaluators import Evaluation, Evaluator, evaluate
from embexp.evaluation.search import Arm
from embexp.models.embedding_model import EmbeddingModel

log = logging.getLogger(__name__)

NEVER = 10**9  # steps
TRAINING = 3  # times what embedding a token costs: forward once, backward twice as much
DISTRACTORS = (10, 5, 2, 1)  # hard ones per query, tried in turn
QUERIES = 100  # a score of fewer says little
PASSAGES = 100  # among fewer nearly all are in the first ten, and every model scores alike
KEPT = "checkpoints/looks.json"  # in a run's folder
Sets = Sequence[tuple[Evaluator, RetrievalSet]]


@dataclass(frozen=True)
class Plan:
    """What a look measures: each evaluator with its part of dev.

    most: looks in the whole training, the one at its end included; None for as many as the config says.
    """

    sets: Sets
    negatives: Mapping[str, Any]
    most: int | None = None

    def score(self, arm: Arm) -> dict[str, float]:
        """What is measured of an arm at a look."""
        parts = [evaluate([evaluator], arm, data, **self.negatives) for evaluator, data in self.sets]
        return {name: value for part in parts for name, value in part.metrics.items()}


@dataclass(frozen=True)
class Asked:
    """How much is trained on, in tokens, and at how many points the config asks for a look.

    fixed: whether that number stays: in a study, whose runs are compared look by look, and with early stopping,
    which counts them.
    """

    tokens: int
    looks: int
    fixed: bool


def plan_of(
    trainer: Mapping[str, Any],
    evaluators: Sequence[Evaluator],
    base: Evaluation,
    dev: RetrievalSet,
    *,
    model: EmbeddingModel,
    train_set: RetrievalSet,
    rows: int,
    looks_per_epoch: int | None,
    negatives: Mapping[str, Any],
    folder: Path,
) -> Plan:
    """What the run in `folder` measures of dev while it trains on so many `rows`, as conf/trainer says.

    looks_per_epoch: that a study asks for. A run that goes on keeps its plan: on other threads or processes the base
    may rank otherwise by rounding, and choose other distractors. base and negatives: see `planned`.
    """
    file, made_from = folder / KEPT, digest([dev.digest, model.origin["content"]])
    if (plan := _read(file, made_from, evaluators, dev, negatives)) is not None:
        return plan
    asked = asked_of(trainer, train_set, rows, model=model, per_epoch=looks_per_epoch)
    share = trainer["evaluation_share"]
    plan = planned(evaluators, base, dev, model=model, asked=asked, share=share, negatives=negatives)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps({"made_from": made_from, "most": plan.most, "sets": _ids(plan, dev)}))
    return plan


def _ids(plan: Plan, dev: RetrievalSet) -> list[list[list[str] | None]]:
    """Of each set the queries and the passages; None for all of dev's."""
    parts = [((data.queries, dev.queries), (data.corpus, dev.corpus)) for _, data in plan.sets]
    return [[list(some) if len(some) < len(all_) else None for some, all_ in part] for part in parts]


def _read(
    file: Path, made_from: str, evaluators: Sequence[Evaluator], dev: RetrievalSet, negatives: Mapping[str, Any]
) -> Plan | None:
    """The plan that was written to the file for this dev and this base; None without one."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    if content is None or content["made_from"] != made_from:
        return None
    sets = []
    for evaluator, (queries, passages) in zip(evaluators, content["sets"], strict=True):
        part = dev if queries is None else dev.with_queries(queries)
        sets.append((evaluator, part if passages is None else part.with_passages(passages)))
    return Plan(sets, negatives, content["most"])


def planned(
    evaluators: Sequence[Evaluator],
    base: Evaluation,
    dev: RetrievalSet,
    *,
    model: EmbeddingModel,
    asked: Asked | None,
    share: float | None,
    negatives: Mapping[str, Any],
) -> Plan:
    """The richest looks that cost at most `share` of the training; all that the config says where either is None.

    First come fewer hard distractors per query (but PASSAGES in all where the config has as many), then fewer looks,
    then a sample of dev's queries, never below QUERIES; where even that is too much, one look at the end is left. That
    one is not counted: the tuned model's evaluation needs its embeddings too. base: its evaluation on all of dev, which
    says what is hard.
    """
    choices = [one.during_training(base, dev) for one in evaluators]
    if share is None or asked is None:
        return Plan([(one, choice(dev)) for one, choice in zip(evaluators, choices, strict=True)], negatives)
    order = np.random.default_rng(0).permutation(sorted(dev.queries)).tolist()
    cost = _Cost(model, negatives)

    def sets(queries: int, distractors: int) -> Sets:
        part = dev if queries == len(order) else dev.with_queries(sorted(order[:queries]))
        for more in (few for few in reversed(DISTRACTORS) if few >= distractors):
            chosen = [choice(part, at_most=more) for choice in choices]
            if all(len(data.corpus) >= PASSAGES for data in chosen):
                break
        return list(zip(evaluators, chosen, strict=True))

    budget, queries = share * TRAINING * asked.tokens, len(order)
    paid = asked.looks if asked.fixed else asked.looks - 1
    fitting = (few for few in DISTRACTORS if paid * cost.of(sets(queries, few)) <= budget)
    distractors = next(fitting, DISTRACTORS[-1])
    if not asked.fixed:
        paid = min(paid, max(1, int(budget // cost.of(sets(queries, distractors)))))
    if paid * cost.of(sets(queries, distractors)) > budget:
        sizes = range(min(QUERIES, queries), queries + 1)
        fit = bisect.bisect_right(sizes, budget, key=lambda size: paid * cost.of(sets(size, distractors)))
        queries = sizes[max(0, fit - 1)]
        paid = paid if fit or asked.fixed else 0
    chosen = sets(queries, distractors)
    expected = paid * cost.of(chosen) / (TRAINING * asked.tokens)
    most = None if asked.fixed else paid + 1
    _say(asked, most=most, queries=queries, of=len(order), distractors=distractors, share=expected)
    return Plan(chosen, negatives, most)


def _say(asked: Asked, *, most: int | None, queries: int, of: int, distractors: int, share: float) -> None:
    log.info(
        "while training: %s at %s of %d dev queries, with up to %d hard passages each; expected to cost %.1f %% of it",
        f"{most} of {asked.looks} looks" if most not in (None, asked.looks) else counted(asked.looks, "look"),
        "all" if queries == of else queries,
        of,
        distractors,
        100 * share,
    )


class _Cost:
    """Counts the tokens that a look embeds; a text of several evaluators once."""

    def __init__(self, model: EmbeddingModel, negatives: Mapping[str, Any]) -> None:
        self._model, self._negatives = model, negatives
        self._lengths: dict[tuple[str, str], int] = {}

    def of(self, sets: Sets) -> int:
        needed = set()
        for evaluator, data in sets:
            queries, passages = evaluator.texts(data, **self._negatives)
            needed |= {(self._model.query_prompt, text) for text in queries}
            needed |= {(self._model.passage_prompt, text) for text in passages}
        for prompt in {prompt for prompt, _ in needed}:
            new = sorted(text for put, text in needed if put == prompt and (put, text) not in self._lengths)
            counted_now = zip(new, lengths(self._model, new, prompt).tolist(), strict=True)
            self._lengths |= {(prompt, text): length for text, length in counted_now}
        return sum(self._lengths[one] for one in needed)


def asked_of(
    arguments: Mapping[str, Any], train_set: RetrievalSet, rows: int, *, model: EmbeddingModel, per_epoch: int | None
) -> Asked | None:
    """What the config asks for; None where it is no look at all.

    per_epoch: looks that a study asks for. What is trained on is counted in pairs of the train set, whatever shape the
    rows have, and for a study in one epoch, so that all its runs are looked at alike.
    """
    if arguments["eval_strategy"] == "no":
        return None
    tokens = _tokens_of_pairs(train_set, model)
    if per_epoch is not None:
        return Asked(tokens, per_epoch, fixed=True)
    steps, total = steps_in(arguments, math.ceil(rows / int(arguments["per_device_train_batch_size"])))
    epochs = total / steps
    if arguments["eval_strategy"] == "epoch":
        return Asked(math.ceil(tokens * epochs), math.ceil(epochs), fixed=True)
    every = every_look(arguments, steps, total)
    looks = math.ceil(1 / every if every < 1 else total / every)
    return Asked(math.ceil(tokens * epochs), looks, fixed=arguments["early_stopping"] is not None)


def _tokens_of_pairs(train_set: RetrievalSet, model: EmbeddingModel) -> int:
    in_queries = lengths(model, list(train_set.queries.values()), model.query_prompt)
    in_passages = lengths(model, list(train_set.corpus.values()), model.passage_prompt)
    length_of = dict(zip(train_set.corpus, in_passages, strict=True))
    return sum(
        length + length_of.get(passage, 0)
        for query, length in zip(train_set.queries, in_queries, strict=True)
        for passage in train_set.relevant(query)
    )


def steps_in(arguments: Mapping[str, Any], batches: int) -> tuple[int, float]:
    """Of the optimiser: in an epoch of so many batches, and in the whole training."""
    steps = math.ceil(batches / arguments.get("gradient_accumulation_steps", 1))
    return steps, arguments["max_steps"] if arguments.get("max_steps", -1) > 0 else steps * arguments[
        "num_train_epochs"
    ]


def every_look(arguments: Mapping[str, Any], steps: int, total: float, *, most: int | None = None) -> float:
    """Steps (below 1: a share of all) to the next look: as configured, at least twice an epoch, `most` times in all."""
    every = at_least_every(arguments["eval_steps"], min(total, steps), 2)
    if most is None or every == NEVER:
        return every
    return max(every, 1 / most if every < 1 else math.ceil(total / most))


def at_least_every(every: float, total: float, times: int) -> float:
    """The steps after which something happens so many times in all; a share of all steps stays as it is."""
    return every if every < 1 or every == NEVER else min(int(every), max(1, math.ceil(total / times)))
