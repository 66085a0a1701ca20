"""PubMedQA as the published recipe reads it, for comparison with its figures only: it leaks, and every report says so.

Called like the other loaders; the only one whose splits are not held against leaks.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embexp.data.retrieval_set import RetrievalSet, Splits, validated
from embexp.data.splits import slices_of
from embexp.datasets import pubmedqa
from embexp.datasets.mined import RECORD
from embexp.datasets.pairs import READERS
from embexp.errors import UserError, listed

CAVEAT = "for comparison with the published figures only: rows are split, so articles leak"


@dataclass(frozen=True)
class RowShares:
    """How question-context rows are dealt at random: test is held out and not used, dev is ours, since the recipe has
    none, and the rest trains."""

    test: float = 0.1
    dev: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.test < 1 and 0 < self.dev < 1 and self.test + self.dev < 1):
            raise UserError(
                f"dataset.split has test {self.test} and dev {self.dev}; they are shares of the rows, dev above 0 and "
                "both together below 1"
            )


def load(*, path: str, name: str, questions: str, split: RowShares, revision: str | None = None) -> Splits:
    """Rows for training, and mined questions as the test.

    | side  | queries                                            | corpus                     |
    |-------|----------------------------------------------------|----------------------------|
    | train | articles' questions, relevant to their train rows  | the contexts of train rows |
    | dev   | the same with dev rows                             | the contexts of dev rows   |
    | test  | the last mined question of each mined article,     | all contexts of the mined  |
    |       | relevant to all of its contexts                    | articles                   |

    questions: a folder that `python -m embexp.mine preset=pubmedqa_as_published` wrote. The slices of test say which
    questions are on articles that train has a row of.
    """
    mined = _mined(Path(questions).expanduser())
    whole, dropped, origin = pubmedqa.read(path=path, name=name, revision=revision)
    foreign = [article for article in mined.articles if article not in whole.queries]
    if foreign:
        raise UserError(
            f"dataset.questions={questions}: {len(foreign)} of its {len(mined.articles)} articles are not in {name}: "
            f"{listed(foreign)}. Mine the same data set: python -m embexp.mine preset=pubmedqa_as_published "
            f"dataset.name={name} out=<a new folder>"
        )
    rows = [(article, passage) for article in whole.queries for passage in whole.qrels[article]]
    random.Random(split.seed).shuffle(rows)
    held_out, kept = round(split.test * len(rows)), round(split.dev * len(rows))
    dev, train = _side(whole, rows[held_out : held_out + kept]), _side(whole, rows[held_out + kept :])
    contexts = whole.with_passages(passage for article in mined.articles for passage in whole.qrels[article]).corpus
    qrels = {article: whole.qrels[article] for article in mined.last}
    test = RetrievalSet(mined.last, contexts, qrels, whole.documents)
    for side in (train, dev, test):
        validated(side)
    origin = {**origin, "questions": questions, "questions_content": mined.content}
    return Splits(train, dev, test, slices_of(train, test), dropped, origin, caveat=CAVEAT)


def _side(whole: RetrievalSet, rows: Iterable[tuple[str, str]]) -> RetrievalSet:
    """The questions and contexts of these rows alone."""
    qrels: dict[str, dict[str, int]] = {}
    for article, passage in rows:
        qrels.setdefault(article, {})[passage] = 1
    queries = {article: whole.queries[article] for article in qrels}
    corpus = {passage: whole.corpus[passage] for grades in qrels.values() for passage in grades}
    return RetrievalSet(queries, corpus, qrels, whole.documents)


@dataclass(frozen=True)
class _Mined:
    """The articles that were mined, the last question on each that has one, and the digest of the folder's content."""

    articles: Sequence[str]
    last: Mapping[str, str]
    content: str


def _mined(folder: Path) -> _Mined:
    """Of an article's questions the recipe keeps the last: stored by article, each replaces the one before."""
    if not (folder / RECORD).is_file():
        raise UserError(
            f"dataset.questions={folder} has no {RECORD}, which mining writes last; make the questions with "
            f"python -m embexp.mine preset=pubmedqa_as_published out={folder}"
        )
    article_of = {str(row["_id"]): str(row["document"]) for _, row in READERS[".jsonl"](folder / "corpus.jsonl")}
    of_passage: dict[str, str] = {}
    for where, row in READERS[".jsonl"](folder / "queries.jsonl"):
        passage = str((row.get("metadata") or {}).get("passage"))
        if passage not in article_of:
            raise UserError(f"{where}: metadata.passage is {passage!r}, which is not in corpus.jsonl")
        of_passage[passage] = str(row["text"])
    # in the passages' order: answers come in any
    last = {article: of_passage[passage] for passage, article in article_of.items() if passage in of_passage}
    if not last:
        raise UserError(f"{folder / 'queries.jsonl'} holds no question")
    content = json.loads((folder / RECORD).read_text(encoding="utf-8"))["content"]
    return _Mined(list(dict.fromkeys(article_of.values())), last, content)
