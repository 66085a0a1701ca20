"""What an experiment starts from: its data and guard set, checked, its base model, and the rows that the loss reads.

Called by `experiment`; what a reader of the result must know goes into its counts and notes on the way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from embexp.cache import json_kept
from embexp.config.components import build
from embexp.data.leaks import refuse_leaks
from embexp.data.paraphrases import without_paraphrases
from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.data.splits import Shares, limited, trainable
from embexp.encoding.encoder import Encoder
from embexp.encoding.tokens import count_truncated
from embexp.errors import UserError, counted
from embexp.forgetting.guard import Guard, Score, guard_of
from embexp.models.embedding_model import EmbeddingModel, refuse_unfit
from embexp.models.sources import identified
from embexp.reporting import report as reports
from embexp.results import result as results
from embexp.rows.negatives import DEFAULT, Drawn, second_look
from embexp.rows.shapes import WITH_NEGATIVES, Rows, to_rows
from embexp.rows.teachers import Judge, teacher_of
from embexp.stages import Timer

if TYPE_CHECKING:
    from embexp.parallel.processes import Processes

log = logging.getLogger(__name__)

Config = Mapping[str, Any]
HELPERS = ("guide", "teacher", "rescorer")  # keys of losses and negatives that name a model
UNTRAINED = "the base model's vectors are random, so that being better than it says little; compare with BM25"
NO_TEACHER = (
    "without a teacher the loss learns the base model's own scores, which teaches it nothing new; "
    "loss.teacher= names a cross-encoder"
)


def helpers_of(config: Config) -> dict[str, dict[str, str | None]]:
    """The guide, the teacher, the rescorer and the reranker that the config names, by content; had at once, or the run
    fails here."""

    def named(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
        for key, value in node.items():
            if key in HELPERS and isinstance(value, str):
                yield f"{path}.{key}", value
            elif isinstance(value, Mapping):
                yield from named(value, f"{path}.{key}")

    settings: list[tuple[str, str]] = []
    if config["trainer"] is not None:
        settings += [*named(config["loss"], "loss"), *named(config["negatives"] or {}, "negatives")]
    if (reranker := config["reranker"]) is not None:
        settings += [*named(reranker, "reranker"), *([("reranker.path", reranker["path"])] if reranker["path"] else [])]
    return {setting: identified(path, setting=setting) for setting, path in settings}


def trains(config: Config) -> bool:
    """Whether a run trains anything: the model, or a reranker, which then has negatives."""
    # a run of an earlier version, opened again, has no such key
    return config["trainer"] is not None or "negatives" in (config.get("reranker") or {})


def data_of(config: Config, result: dict[str, Any]) -> Splits:
    """The data set, checked and limited. Raises UserError when it leaks, or leaves nothing to train on."""
    splits: Splits = build(config["dataset"], allowed=config["allowed_packages"])
    if splits.apart:
        raise UserError(
            f"the data set is {len(splits.apart)} sets with a corpus of their own, whose scores are averaged: that is "
            "for a guard set (guard_dataset=nanobeir). A run is measured on one: dataset.subsets=[NanoNQ] trainer=none"
        )
    if trains(config) and not (splits.train.queries and splits.dev.queries):
        raise UserError(
            "the data set is for evaluation alone: it has "
            f"{counted(len(splits.test.queries), 'question', 'questions')} to test on, and none to train on. Set "
            "trainer=none, and no reranker=trained, to score the model on it"
        )
    shares = config["dataset"].get("split") or {}  # a data set of the user's own may bring its splits ready
    result["caveat"] = splits.caveat
    if splits.caveat is None:
        refuse_leaks(splits, near_duplicate=shares.get("near_duplicate", Shares.near_duplicate))
    else:
        log.warning("%s", splits.caveat)
    if config["limit"] is not None:
        splits = limited(splits, config["limit"])
    sizes = {"train": splits.train, "dev": splits.dev, "test": splits.test}
    shown = [f"{name} {counted(len(side.queries), 'query', 'queries')}" for name, side in sizes.items()]
    log.info("data: %s; %s", ", ".join(shown), counted(len(splits.test.corpus), "passage"))
    return splits


def begun(
    config: Config, result: dict[str, Any], stage: Timer, score: Score, *, tests: bool, processes: Processes | None
) -> tuple[Any, Splits, Guard | None, EmbeddingModel]:
    """What the config's model is built as, the data, the guard set and the base model; all that a run can't be had
    without.

    score, tests: see `guard_of`.
    """
    with stage("model"):
        source, helpers = (
            build(config["model"], allowed=config["allowed_packages"], without=["kind"]),
            helpers_of(config),
        )
    with stage("data"):
        splits = data_of(config, result)
        result["counts"] = results.counts(splits)
        guard = guard_of(config, splits, result, score, tests=tests)
    with stage("loading"):
        model = model_of(config, source, splits, guard, result, processes)
        result["fingerprint"] = results.fingerprint(splits, model.origin, helpers)
    return source, splits, guard, model


def model_of(
    config: Config, source: Any, splits: Splits, guard: Guard | None, result: dict[str, Any],
    processes: Processes | None,
) -> EmbeddingModel:  # fmt: skip
    """The base model, in all processes of the run. Raises UserError when the loss can't train it."""
    model = base_of(config, source, splits, processes)
    if config["trainer"] is not None:
        refuse_unfit(model, needs=config["loss"].get("needs"))
    if model.remote is not None:
        sets = [splits.dev, splits.test, *([splits.train] if trains(config) else []), *(guard.sets if guard else [])]
        model.remote.announce(_all_texts(sets, model))
        result["counts"]["sent"] = model.remote.sent  # goes on counting while the run goes on
    if model.untrained:
        note(result, UNTRAINED)
    result["counts"]["dimensions"] = model.facts.dimensions
    parts = [model.origin["content"], model.facts.max_seq_length, model.passage_prompt, splits.test.digest]
    result["counts"]["truncated"] = json_kept("truncated", parts, lambda: count_truncated(model, splits.test))
    return model


def base_of(config: Config, source: Any, splits: Splits, processes: Processes | None) -> EmbeddingModel:
    """The base model as it was before any training, loaded anew in all processes of the run."""
    read: list[str] = []  # stays empty where the model is as it was saved

    def texts() -> Iterator[str]:
        read.extend(splits.tokenizer_texts)
        yield from read

    model: EmbeddingModel = source.load(texts())
    if processes is not None:
        from embexp.parallel.shares import same_weights

        processes.tell("model", node=config["model"], allowed_packages=config["allowed_packages"], texts=read)
        same_weights(model.model, processes)
    return replace(model, processes=processes)


def _all_texts(sets: Sequence[RetrievalSet], model: EmbeddingModel) -> list[str]:
    """What the model is asked to embed, with its prompts."""
    passages = dict.fromkeys(text for data in sets for text in data.corpus.values())
    queries = dict.fromkeys(text for data in sets for text in data.queries.values())
    return [*(model.passage_prompt + text for text in passages), *(model.query_prompt + text for text in queries)]


def rows_of(
    config: Config, model: EmbeddingModel, splits: Splits, encoder: Encoder, result: dict[str, Any]
) -> tuple[RetrievalSet, Rows]:
    """What to train on, and its rows in the shape that the loss reads; what there is to say of its negatives goes into
    the result."""
    train_set = train_set_of(config, model, splits, encoder, result)
    rows = to_rows(
        train_set,
        config["loss"]["shape"],
        negatives=_negatives(config, encoder),
        teacher=_teacher(config["loss"], encoder, result),
        seed=config["seed"],
    )
    if rows.drawn is not None:
        result["counts"]["negatives"] = second_look(rows.drawn, train_set, encoder=encoder, seed=config["seed"])
        log.info("%s", reports.negatives_line(result))
    elif config["negatives"] not in (None, DEFAULT):
        using = [shape for shape in config["loss"]["accepts"] if shape in WITH_NEGATIVES]
        fix = f"loss.shape={using[0]} uses them" if using else "loss=triplet would use them"
        shape = config["loss"]["shape"]
        note(result, f"the negatives asked for are not used: the loss reads rows of shape {shape}, without any; {fix}")
    return train_set, rows


def train_set_of(
    config: Config, model: EmbeddingModel, splits: Splits, encoder: Encoder, result: dict[str, Any]
) -> RetrievalSet:
    """Train without what would give dev or test away; as it is where nothing is trained."""
    if not trains(config):
        return splits.train
    threshold = None if model.untrained else config["paraphrase"]
    train_set = without_paraphrases(trainable(splits), splits, encoder, threshold=threshold)
    result["counts"]["paraphrases_dropped"] = len(splits.train.queries) - len(train_set.queries)
    return train_set


def _negatives(config: Config, encoder: Encoder) -> Callable[..., Drawn] | None:
    if config["negatives"] is None:
        return None
    return partial(build(config["negatives"], allowed=config["allowed_packages"]), encoder=encoder)


def _teacher(loss: Mapping[str, Any], encoder: Encoder, result: dict[str, Any]) -> Judge | None:
    if loss["shape"] != "list":
        return None
    if loss["teacher"] is None:
        note(result, NO_TEACHER)
    return teacher_of(loss["teacher"], encoder, setting="loss.teacher")


def note(result: dict[str, Any], text: str) -> None:
    """Say it now, and again wherever the scores are shown."""
    result["notes"].append(text)
    log.warning("note: %s", text)
