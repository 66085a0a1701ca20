"""Real users' questions: the slice of test that says most. Called by `mining`.

They come from a file, with the ids of the passages that answer them or without; then a judge looks at what keyword
search finds. Or they are a data set's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embexp.data.retrieval_set import Qrels, RetrievalSet, Splits
from embexp.datasets.pairs import READERS
from embexp.errors import UserError, listed
from embexp.mine.passages import Judge, Passage, hashed

if TYPE_CHECKING:
    from embexp.models.embedding_model import EmbeddingModel

CANDIDATES = 10  # passages per question that the judge looks at, of keyword search and of the model each


@dataclass(frozen=True)
class Real:
    """Questions with the passages that answer them. left_out: why questions were left out, with counts."""

    queries: Mapping[str, str]
    qrels: Qrels
    left_out: Mapping[str, int]


NONE = Real({}, {}, {})


def of_data_set(splits: Splits, passages: Mapping[str, Passage]) -> Real:
    """All queries of a data set that are about these passages."""
    queries: dict[str, str] = {}
    qrels: dict[str, Mapping[str, int]] = {}
    for side in (splits.train, splits.dev, splits.test):
        about = [query for query in side.queries if passages.keys() >= set(side.relevant(query))]
        queries |= {query: side.queries[query] for query in about}
        qrels |= {query: {passage: side.qrels[query][passage] for passage in side.relevant(query)} for query in about}
    return Real(queries, qrels, {})


def read(
    path: str, passages: Mapping[str, Passage], *, judge: Judge | None, model: EmbeddingModel | None = None
) -> Real:
    """Read JSONL, CSV, TSV or Parquet with a column `query` and optionally `passages`, the ids that answer it.

    `passages` is a list, or ids with spaces between them; rows of one question are joined. model: finds passages for
    the judge beside keyword search, or keyword search would have every known answer among its first. Raises UserError
    for a file that can't be read, an id that is no passage's, and questions without ids when there is no judge.
    """
    if problem := missing(path):
        raise UserError(problem)
    file = Path(path).expanduser()
    reader = READERS[file.suffix.lower()]
    texts: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for where, row in reader(file):
        text = row.get("query")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: needs a column query with a text; it has {', '.join(map(str, row))}")
        query = hashed("real", text.strip())
        texts[query] = text.strip()
        qrels.setdefault(query, {}).update(dict.fromkeys(_ids(row.get("passages"), where, passages), 1))
    if not texts:
        raise UserError(f"real_questions={path} is empty")
    unanswered = {query: text for query, text in texts.items() if not qrels[query]}
    left_out: dict[str, int] = {}
    if unanswered:
        judged, not_judged = _judged(unanswered, passages, judge, model, path)
        qrels |= judged
        lost = sum(not grades for grades in judged.values()) - not_judged
        left_out = {"real: the judge found no passage": lost, "real: the judge gave no judgement": not_judged}
    found = {query: text for query, text in texts.items() if qrels[query]}
    left_out = {why: count for why, count in left_out.items() if count}
    return Real(found, {query: qrels[query] for query in found}, left_out)


def missing(path: str) -> str | None:
    """What to say of a path that names no file of questions."""
    file = Path(path).expanduser()
    if file.is_file() and file.suffix.lower() in READERS:
        return None
    return f"real_questions={path} is not a file that ends in {', '.join(READERS)}"


def _ids(value: Any, where: str, passages: Mapping[str, Passage]) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, str | list):
        raise UserError(f"{where}: passages is {value!r}; it must be a list of ids, or ids with spaces between them")
    ids = value.split() if isinstance(value, str) else [str(each) for each in value]
    unknown = [each for each in ids if each not in passages]
    if unknown:
        raise UserError(
            f"{where}: {listed(unknown)} is no passage's id; corpus.jsonl of the written data set has them as _id. "
            "Leave the column out to have a judge find the passages (miner=llm)"
        )
    return ids


def _judged(
    queries: Mapping[str, str],
    passages: Mapping[str, Passage],
    judge: Judge | None,
    model: EmbeddingModel | None,
    path: str,
) -> tuple[dict[str, dict[str, int]], int]:
    """Query id -> the passages that answer it, and how many queries without one were not judged to the end."""
    if judge is None:
        raise UserError(
            f"real_questions={path}: {len(queries)} questions have no passage ids, and only an LLM can look for them. "
            "Set judge=true with an llm, or add a column passages with ids from corpus.jsonl"
        )
    from embexp.encoding.encoder import Encoder  # slow to import
    from embexp.evaluation.search import BM25, Arm, Dense

    corpus = {passage.id: passage.whole for passage in passages.values()}
    data = RetrievalSet(queries, corpus, {}, {})
    arms: list[Arm] = [BM25()]
    if model is not None and not model.untrained:
        arms.append(Dense(Encoder(model, progress="real questions", content=model.origin["content"])))
    rankings = [arm.search(data, top=CANDIDATES) for arm in arms]
    ranked = ((query, key) for ranking in rankings for query in queries for key, _ in ranking[query])
    looked_at = list(dict.fromkeys(ranked))
    said = judge.answers([(queries[query], corpus[passage]) for query, passage in looked_at])
    found: dict[str, dict[str, int]] = {query: {} for query in queries}
    unjudged = set()
    for (query, passage), answers in zip(looked_at, said, strict=True):
        if answers:
            found[query][passage] = 1
        elif answers is None:
            unjudged.add(query)
    return found, sum(not found[query] for query in unjudged)
