"""Turns a RetrievalSet into the rows that a loss or an evaluator reads. The one place that knows columns.

Called by `evaluators` and `fine_tuning`; knows nothing of models. The library reads columns by order, so each shape
lists them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from embexp.data.retrieval_set import RetrievalSet
from embexp.errors import UserError
from embexp.rows.negatives import Drawn
from embexp.rows.teachers import Judge

TAUGHT = "scores"  # the column of a teacher's scores
LABEL_COLUMNS = ("label", "score", TAUGHT)
WITH_NEGATIVES = ("triplet", "n_tuple", "list")  # shapes that can't be made without


@dataclass(frozen=True)
class Rows:
    """Rows of one shape. `columns` maps a column to its values, in the order that the loss reads them.

    For each row `query_ids` names its query and `passage_ids` the passages it shows, positives and negatives alike, so
    that batches can avoid false negatives and scores can be grouped by document. drawn: the negatives that were drawn
    for them, None where none were.
    """

    columns: Mapping[str, Sequence[Any]]
    query_ids: Sequence[str]
    passage_ids: Sequence[tuple[str, ...]]
    drawn: Drawn | None = None

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def text_columns(self) -> list[str]:
        """The columns that hold texts; the first is the query's, the others are passages'."""
        return [column for column in self.columns if column not in LABEL_COLUMNS]

    @property
    def labelled(self) -> bool:
        """Whether each row says itself what is relevant, so that no other row's passages are taken as negatives."""
        return len(self.text_columns) < len(self.columns)

    def of_queries(self, query_ids: Collection[str]) -> Rows:
        """Those of these queries alone, with the negatives that were drawn."""
        kept = [row for row, query in enumerate(self.query_ids) if query in query_ids]
        columns = {name: [values[row] for row in kept] for name, values in self.columns.items()}
        shown = [self.passage_ids[row] for row in kept]
        return Rows(columns, [self.query_ids[row] for row in kept], shown, self.drawn)


def to_rows(
    retrieval_set: RetrievalSet,
    shape: str,
    *,
    negatives: Callable[..., Drawn] | None,
    seed: int,
    teacher: Judge | None = None,
) -> Rows:
    """Convert to the named shape, drawing negatives where it needs them.

    | shape         | columns                                  | rows                                              |
    |---------------|------------------------------------------|---------------------------------------------------|
    | pair          | anchor, positive                         | one per relevant passage                          |
    | triplet       | anchor, positive, negative               | one per relevant passage and negative             |
    | n_tuple       | anchor, positive, negative_1, ...        | one per relevant passage, with all its negatives  |
    | labelled_pair | text_a, text_b, label                    | 1 per relevant passage, 0 per judged or drawn one |
    | scored_pair   | text_a, text_b, score                    | grade / highest grade, and 0.0 per negative       |
    | list          | anchor, positive, negative_1, ..., scores | as n_tuple; the teacher's score of each passage  |

    negatives: takes the set and the seed; None draws none, which is enough for pairs, and for labelled and scored pairs
    on data with judgements of both kinds. teacher: scores the lists. Raises UserError for a shape that the data cannot
    be turned into.
    """
    if shape not in SHAPES:
        raise UserError(f"shape {shape!r} is not one that data can be turned into; there are {', '.join(SHAPES)}")
    drawn: list[Drawn] = []

    def draw() -> Mapping[str, Sequence[str]]:
        if negatives is None:
            return dict.fromkeys(retrieval_set.queries, ())
        drawn.append(negatives(retrieval_set, seed=seed))
        return drawn[-1]

    rows = SHAPES[shape](retrieval_set, draw)
    if not len(rows):
        raise UserError(f"no rows of shape {shape} could be made from {len(retrieval_set.queries)} queries")
    if negatives is None and any(
        len(set(rows.columns[name])) == 1 for name in ("label", "score") if name in rows.columns
    ):
        raise UserError(
            f"all rows of shape {shape} have the same label: no passage is judged not relevant (grade 0), and with "
            "negatives=none no other is taken; set negatives=random or hard"
        )
    if shape == "list":
        rows = _taught(rows, teacher)
    return replace(rows, drawn=drawn[-1] if drawn else None)


def _taught(rows: Rows, teacher: Judge | None) -> Rows:
    """The rows with the teacher's scores, positive first, as their last column."""
    if teacher is None:
        raise UserError(
            "shape list needs a teacher; a loss file that reads it has the key teacher (null: the base model)"
        )
    query, *passages = rows.text_columns
    flat = [text for row in zip(*(rows.columns[name] for name in passages), strict=True) for text in row]
    asked = [text for text in rows.columns[query] for _ in passages]
    scores = teacher(asked, flat).reshape(len(rows), len(passages))
    return replace(rows, columns={**rows.columns, TAUGHT: scores.tolist()})


DrawNegatives = Callable[[], Mapping[str, Sequence[str]]]


def _positives(retrieval_set: RetrievalSet) -> list[tuple[str, str]]:
    """(query id, relevant passage id) pairs; a passage whose text the query has already is left out."""
    pairs = []
    for query in retrieval_set.queries:
        texts = set()
        for passage in retrieval_set.relevant(query):
            text = retrieval_set.corpus.get(passage)
            if text is not None and text not in texts:
                texts.add(text)
                pairs.append((query, passage))
    return pairs


def _pair(data: RetrievalSet, _draw: DrawNegatives) -> Rows:
    pairs = _positives(data)
    columns = {
        "anchor": [data.queries[query] for query, _ in pairs],
        "positive": [data.corpus[passage] for _, passage in pairs],
    }
    return Rows(columns, [query for query, _ in pairs], [(passage,) for _, passage in pairs])


def _triplet(data: RetrievalSet, draw: DrawNegatives) -> Rows:
    drawn = draw()
    triples = [(query, passage, negative) for query, passage in _positives(data) for negative in drawn[query]]
    columns = {
        "anchor": [data.queries[query] for query, _, _ in triples],
        "positive": [data.corpus[passage] for _, passage, _ in triples],
        "negative": [data.corpus[negative] for _, _, negative in triples],
    }
    shown = [(passage, negative) for _, passage, negative in triples]
    return Rows(columns, [query for query, _, _ in triples], shown)


def _n_tuple(data: RetrievalSet, draw: DrawNegatives) -> Rows:
    pairs, drawn = _positives(data), draw()
    columns = dict(_pair(data, draw).columns)
    for place in range(min((len(negatives) for negatives in drawn.values()), default=0)):
        columns[f"negative_{place + 1}"] = [data.corpus[drawn[query][place]] for query, _ in pairs]
    return Rows(columns, [query for query, _ in pairs], [(passage, *drawn[query]) for query, passage in pairs])


def _two_texts(data: RetrievalSet, draw: DrawNegatives, label: str, value: Callable[[int], float]) -> Rows:
    pairs = _positives(data)
    for query, passages in draw().items():
        judged = sorted(
            passage for passage, grade in data.qrels[query].items() if grade <= 0 and passage in data.corpus
        )
        pairs += [(query, passage) for passage in dict.fromkeys([*judged, *passages])]
    columns: dict[str, Sequence[Any]] = {
        "text_a": [data.queries[query] for query, _ in pairs],
        "text_b": [data.corpus[passage] for _, passage in pairs],
        label: [value(data.qrels[query].get(passage, 0)) for query, passage in pairs],
    }
    return Rows(columns, [query for query, _ in pairs], [(passage,) for _, passage in pairs])


def _labelled_pair(data: RetrievalSet, draw: DrawNegatives) -> Rows:
    return _two_texts(data, draw, "label", lambda grade: int(grade > 0))


def _scored_pair(data: RetrievalSet, draw: DrawNegatives) -> Rows:
    highest = max(grade for grades in data.qrels.values() for grade in grades.values())
    return _two_texts(data, draw, "score", lambda grade: max(0, grade) / highest)


SHAPES: dict[str, Callable[[RetrievalSet, DrawNegatives], Rows]] = {
    "pair": _pair,
    "triplet": _triplet,
    "n_tuple": _n_tuple,
    "labelled_pair": _labelled_pair,
    "scored_pair": _scored_pair,
    "list": _n_tuple,  # then scored by the teacher
}
