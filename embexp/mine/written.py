"""The data set that mining writes: assembled from the questions, and written so that every file is whole or absent.

Called by `mining`; read by `datasets.mined` and, being in BEIR's layout, by other tools.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from embexp.cache import digest
from embexp.durable import write_whole
from embexp.errors import UserError, described
from embexp.mine.passages import Passage, Question, Rejected
from embexp.mine.sentences import without

LEARNT = "learnt.jsonl"
LAST = "mining.json"  # written last: a folder that has it is whole


@dataclass(frozen=True)
class Query:
    """A question of the data set. side: train, dev, or a slice of test (unseen, seen, real, paraphrase)."""

    text: str
    side: str
    answers: Mapping[str, int]  # passage id -> grade
    about: Mapping[str, Any]  # passage, kind, span and whether keyword search has it first


@dataclass(frozen=True)
class DataSet:
    """What is written. units: passage id -> what was held out whole together with it. learnt: id -> text of what were
    training questions in data sets that it goes on from, and are none in it."""

    passages: Mapping[str, Passage]
    units: Mapping[str, str]
    queries: Mapping[str, Query]
    cloze: Mapping[str, str]  # passage id -> its text without the words of its pseudo-queries
    rejected: Sequence[Rejected]
    learnt: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of all that a run on it depends on."""
        texts = {key: passage.whole for key, passage in self.passages.items()}
        queries = {key: [query.text, query.side, query.answers] for key, query in self.queries.items()}
        return digest([texts, dict(self.units), queries, dict(self.cloze)])

    def of_side(self, side: str) -> list[str]:
        """Ids of the queries of train or dev, or of a slice of test."""
        return [key for key, query in self.queries.items() if query.side == side]


def is_whole(folder: Path) -> bool:
    """Whether the folder holds a data set whose mining was not stopped early."""
    file = folder / LAST
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("stopped") is None


def queries_of(
    dealt: Mapping[str, Sequence[Question]],
    passages: Mapping[str, Passage],
    *,
    easy: frozenset[str],
    further: Mapping[str, Sequence[str]],
    side_of: Mapping[str, str],
) -> dict[str, Query]:
    """The mined questions with the passages that answer them.

    easy: questions that keyword search has first. further: passages that a judge added. side_of: passage id -> the side
    that its document is on: no answer is taken from another side, or training would see what is held out. Where the
    miner names no other passages, a neighbour that holds the same words, since passages overlap, answers too.
    """
    by_place = {(passage.document, passage.position): passage for passage in passages.values()}
    found = {}
    for side, questions in dealt.items():
        for question in questions:
            beside = question.also or _neighbours(question, passages, by_place)
            answers = [question.passage, *beside, *further.get(question.id, ())]
            answers = [passage for passage in answers if side_of[passage] == side_of[question.passage]]
            about = {**_about(question), "bm25_first": question.id in easy, "cloze": question.cloze}
            found[question.id] = Query(question.text, side, dict.fromkeys(answers, 1), about)
    return found


def cloze_texts(queries: Mapping[str, Query], passages: Mapping[str, Passage]) -> dict[str, str]:
    """Passage id -> its text without the words of its pseudo-queries, where there are some."""
    spans: dict[str, list[str]] = defaultdict(list)
    for query in queries.values():
        if query.about.get("cloze"):
            for passage in query.answers:
                spans[passage].append(query.about["span"])
    texts = {key: without(passages[key], found) for key, found in spans.items()}
    return {key: text for key, text in texts.items() if text.strip()}  # a passage never stays without words


def _neighbours(
    question: Question, passages: Mapping[str, Passage], by_place: Mapping[tuple[str, int], Passage]
) -> Iterator[str]:
    own = passages[question.passage]
    for step in (-1, 1):
        neighbour = by_place.get((own.document, own.position + step))
        if neighbour is not None and neighbour.headings == own.headings and question.span.strip():
            first, second = (neighbour, own) if step < 0 else (own, neighbour)
            if question.span in _overlap(first.text, second.text):
                yield neighbour.id


def _overlap(first: str, second: str) -> str:
    """The end of the first text that is the start of the second."""
    return next((first[place:] for place in range(len(first)) if second.startswith(first[place:])), "")


def write(data: DataSet, folder: Path, *, record: Mapping[str, Any], page: str) -> None:
    """Write the data set. record: what mining.json says beside the content's digest; page: mining.md.

    | file               | holds                                                                                |
    |--------------------|--------------------------------------------------------------------------------------|
    | corpus.jsonl       | _id, title (the headings), text, document; metadata: file and position               |
    | queries.jsonl      | _id, text; metadata: side, passage, kind, span                                       |
    | qrels/<split>.tsv  | query-id, corpus-id, score after a header line; train, dev and test                  |
    | slices.json        | slice of test -> query ids                                                           |
    | cloze.jsonl        | _id, text: passages as train and dev read them, without the words of pseudo-queries  |
    | rejected.jsonl     | questions that were dropped, with stage and reason                                   |
    | learnt.jsonl       | _id, text: training questions of data sets before it that are gone                   |
    | mining.json, .md   | how it was made, with counts, tokens and cost; the same to read                      |
    """
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / LAST).unlink(missing_ok=True)
    corpus = (
        {
            "_id": key,
            "title": passage.title,
            "text": passage.text,
            "document": data.units[key],
            "metadata": {"file": passage.document, "position": passage.position},
        }
        for key, passage in data.passages.items()
    )
    _lines(folder / "corpus.jsonl", corpus)
    queries = (
        {"_id": key, "text": query.text, "metadata": {"side": query.side, **query.about}}
        for key, query in data.queries.items()
    )
    _lines(folder / "queries.jsonl", queries)
    slices = {name: ids for name in ("unseen", "seen", "real", "paraphrase") if (ids := data.of_side(name))}
    splits = {"train": data.of_side("train"), "dev": data.of_side("dev"), "test": list(chain(*slices.values()))}
    for name, ids in splits.items():
        if not ids:  # of a set for evaluation alone
            (folder / "qrels" / f"{name}.tsv").unlink(missing_ok=True)
            continue
        lines = [f"{key}\t{passage}\t{grade}" for key in ids for passage, grade in data.queries[key].answers.items()]
        write_whole(folder / "qrels" / f"{name}.tsv", "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    write_whole(folder / "slices.json", json.dumps(slices, indent=1) + "\n")
    _lines(folder / "cloze.jsonl", ({"_id": key, "text": text} for key, text in data.cloze.items()))
    rejected = (
        {"text": each.question.text, "stage": each.stage, "reason": each.reason, **_about(each.question)}
        for each in data.rejected
    )
    _lines(folder / "rejected.jsonl", rejected)
    _lines(folder / LEARNT, ({"_id": key, "text": text} for key, text in data.learnt.items()))
    write_whole(folder / "mining.md", page)
    write_whole(folder / LAST, json.dumps({**record, "content": data.digest}, indent=2) + "\n")


def read(folder: Path) -> DataSet:
    """What `write` has written; a passage's headings are one. Raises UserError for a folder that is not whole."""
    try:
        passages, units = {}, {}
        for row in _rows(folder / "corpus.jsonl"):
            headings, place = (row["title"],) if row["title"] else (), row["metadata"]
            passages[row["_id"]] = Passage(row["text"], place["file"], headings, place["position"], row["_id"])
            units[row["_id"]] = row["document"]
        answers: dict[str, dict[str, int]] = defaultdict(dict)
        for file in sorted((folder / "qrels").glob("*.tsv")):
            for line in file.read_text(encoding="utf-8").splitlines()[1:]:
                query, passage, grade = line.split("\t")
                answers[query][passage] = int(grade)
        queries = {}
        for row in _rows(folder / "queries.jsonl"):
            about = dict(row["metadata"])
            queries[row["_id"]] = Query(row["text"], about.pop("side"), answers[row["_id"]], about)
        rejected = [
            Rejected(Question(row["text"], row["passage"], row["kind"], row["span"]), row["stage"], row["reason"])
            for row in _rows(folder / "rejected.jsonl")
        ]
        cloze = {row["_id"]: row["text"] for row in _rows(folder / "cloze.jsonl")}
        learnt = learnt_before(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} can't be read as a mined data set ({described(error)}); mine it again") from error
    return DataSet(passages, units, queries, cloze, rejected, learnt)


def learnt_before(folder: Path) -> dict[str, str]:
    """Id -> text of the training questions that the data set no longer has; none in one that goes on from none."""
    file = folder / LEARNT
    return {row["_id"]: row["text"] for row in _rows(file)} if file.is_file() else {}


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _about(question: Question) -> dict[str, str]:
    return {"passage": question.passage, "kind": question.kind, "span": question.span}


def _lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
