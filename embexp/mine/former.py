"""What of a data set that was mined before stands in the next one: questions on passages that are as they were.

So that only what is new is asked about, and so that no question and no document changes its side: a model that was
trained on the former data set must not be tested on what it has learnt. Called by `mining`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from embexp.mine import written
from embexp.mine.passages import Passage, Question, Rejected, Wanted
from embexp.mine.real import NONE, Real
from embexp.mine.sides import Sides
from embexp.mine.written import DataSet, Query

HALF = {"train": "train", "seen": "train", "dev": "dev", "unseen": "test"}  # a mined question's side -> its document's
STRICTEST = ("test", "dev", "train")  # which side a document of passages from several sides is on
Dealt = Mapping[str, Sequence[Question]]


@dataclass(frozen=True)
class Former:
    """What stands of a former data set; all empty for one that is mined for the first time.

    | field       | holds                                                                                      |
    |-------------|--------------------------------------------------------------------------------------------|
    | side_of     | today's units -> their side: that of then, also under a new name                           |
    | settled     | passages that are not asked about again                                                    |
    | dealt       | side -> the questions that stand                                                           |
    | sides       | question id -> the side that it had, of all mined ones                                     |
    | further     | question id -> the other passages that answer it                                           |
    | easy        | ids of questions whose passage BM25 had first                                              |
    | paraphrases | ids of training questions -> the paraphrase's id and itself                                |
    | real        | real users' questions with the passages of then that are left                              |
    | rejected    | what the funnel dropped on passages that are settled                                       |
    | trained     | id -> text of all that was ever a training question, in this data set or one before it     |
    """

    side_of: Mapping[str, str] = field(default_factory=dict)
    settled: frozenset[str] = frozenset()
    dealt: Dealt = field(default_factory=lambda: dict.fromkeys(HALF, ()))
    sides: Mapping[str, str] = field(default_factory=dict)
    further: Mapping[str, Sequence[str]] = field(default_factory=dict)
    easy: frozenset[str] = frozenset()
    paraphrases: Mapping[str, tuple[str, Query]] = field(default_factory=dict)
    real: Real = NONE
    rejected: Sequence[Rejected] = ()
    trained: Mapping[str, str] = field(default_factory=dict)

    @property
    def learnt(self) -> dict[str, str]:
        """Training questions that do not stand: a model learnt them, so that nothing near them can test it."""
        standing = {question.id for question in self.dealt["train"]}
        return {key: text for key, text in self.trained.items() if key not in standing}

    @property
    def texts(self) -> dict[str, str]:
        """Question id -> text, of all that stand: no new one may be near one of them."""
        return {question.id: question.text for questions in self.dealt.values() for question in questions}

    def unasked(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """Those of which nothing is known yet."""
        return [each for each in wanted if each.passage.id not in self.settled]

    def placed(self, dealt: Dealt) -> dict[str, list[Question]]:
        """New questions, but one that the former data set had goes to its side there, or away where its document has
        changed sides."""
        found: dict[str, list[Question]] = {side: [] for side in dealt}
        for side, questions in dealt.items():
            for question in questions:
                was = self.sides.get(question.id, side)
                if HALF[was] == HALF[side]:
                    found[was].append(question)
        return found

    def joined(self, dealt: Dealt) -> dict[str, list[Question]]:
        """The questions that stand, then the new ones."""
        return {side: [*self.dealt[side], *questions] for side, questions in dealt.items()}

    def without_copies(self, sides: Sides, users: Real) -> tuple[Former, list[Rejected]]:
        """Without questions that stand nearly the same among real ones that were not there then."""
        new = {key: text for key, text in users.queries.items() if key not in self.real.queries}
        if not new:
            return self, []
        dealt, gone = sides.without_copies(self.dealt, new, self.learnt)
        return replace(self, dealt=dealt), gone

    def with_real(self, users: Real) -> Real:
        """Real questions of then and of now; one that is in both has the passages of now."""
        return Real({**self.real.queries, **users.queries}, {**self.real.qrels, **users.qrels}, users.left_out)


def of(folder: Path, passages: Sequence[Passage], sides: Sides, *, in_sections: bool, keep_real: bool) -> Former:
    """Hold a mined data set against today's passages.

    in_sections: whether a question depends on all passages under its headings, as pseudo-queries do; then a section is
    mined again, at no cost, as soon as one of its passages is new or gone. keep_real: whether real questions stand.
    Raises UserError where the folder holds no whole data set.
    """
    data = written.read(folder)
    by_id = {passage.id: passage for passage in passages}
    same = {key for key, old in data.passages.items() if key in by_id and by_id[key].whole == old.whole}
    before = _sides_of(data, sides)
    side_of = _sides_today(data, before, passages, sides)
    # a passage in a document of another side: what was learnt from it must not be asked about, nor the other way round
    moved = {key for key in same if before[data.units[key]] != side_of[sides.unit_of(by_id[key])]}
    remade = _changed_sections(data.passages.values(), passages) if in_sections else frozenset[str]()
    standing = {
        key: query for key, query in data.queries.items() if query.about.get("passage") in same - moved - remade
    }
    settled = _asked(data, folder) & (same - remade) | moved
    return Former(
        side_of, frozenset(settled), _dealt(standing),
        {key: query.side for key, query in data.queries.items() if query.side in HALF},
        {key: [each for each in query.answers if each in same] for key, query in standing.items()},
        frozenset(key for key, query in standing.items() if query.about.get("bm25_first")),
        _paraphrases(data, standing), _real(data, same) if keep_real else NONE,
        [each for each in data.rejected if each.question.passage in settled],
        {**data.learnt, **{key: data.queries[key].text for key in data.of_side("train")}},
    )  # fmt: skip


def _asked(data: DataSet, folder: Path) -> set[str]:
    """Passages that were asked about: all, unless mining was stopped early."""
    if written.is_whole(folder):
        return set(data.passages)
    with_questions = {str(query.about.get("passage")) for query in data.queries.values()}
    return with_questions | {each.question.passage for each in data.rejected}


def _sides_of(data: DataSet, sides: Sides) -> dict[str, str]:
    """Unit -> side of then: its questions say it, and a unit that has none is where its name puts it."""
    found = sides.assigned(data.units.values())
    for query in data.queries.values():
        if query.side in HALF and query.about["passage"] in data.units:
            found[data.units[query.about["passage"]]] = HALF[query.side]
    return found


def _sides_today(data: DataSet, before: Mapping[str, str], passages: Sequence[Passage], sides: Sides) -> dict[str, str]:
    """A known unit stays where it was, also under a new name; a new one goes where its name puts it."""
    found = sides.assigned(sides.unit_of(passage) for passage in passages)
    brought: dict[str, set[str]] = defaultdict(set)
    for passage in passages:
        if passage.id in data.units:
            brought[sides.unit_of(passage)].add(before[data.units[passage.id]])
    for unit, came_from in brought.items():
        found[unit] = next(side for side in STRICTEST if side in came_from)
    return found | {unit: side for unit, side in before.items() if unit in found}


def _changed_sections(old: Iterable[Passage], new: Iterable[Passage]) -> frozenset[str]:
    """Ids of passages under headings of a document under which not all is as it was."""

    def sections(passages: Iterable[Passage]) -> dict[tuple[str, str], list[tuple[int, str, str]]]:
        found = defaultdict(list)
        for each in passages:
            found[each.document, each.title].append((each.position, each.id, each.whole))
        return {key: sorted(each) for key, each in found.items()}

    def held(parts: Sequence[tuple[int, str, str]]) -> list[tuple[str, str]]:
        return [(key, text) for _, key, text in parts]  # the place changes with what is put in front

    before, today = sections(old), sections(new)
    changed = (parts for key, parts in today.items() if held(parts) != held(before.get(key, ())))
    return frozenset(key for parts in changed for _, key, _ in parts)


def _dealt(standing: Mapping[str, Query]) -> dict[str, list[Question]]:
    dealt: dict[str, list[Question]] = {side: [] for side in HALF}
    for query in standing.values():
        about = query.about
        dealt[query.side].append(Question(query.text, about["passage"], about["kind"], about["span"], about["cloze"]))
    return dealt


def _paraphrases(data: DataSet, standing: Mapping[str, Query]) -> dict[str, tuple[str, Query]]:
    return {
        query.about["paraphrase_of"]: (key, query)
        for key, query in data.queries.items()
        if query.side == "paraphrase" and query.about["paraphrase_of"] in standing
    }


def _real(data: DataSet, same: set[str]) -> Real:
    qrels = {
        key: {passage: grade for passage, grade in query.answers.items() if passage in same}
        for key, query in data.queries.items()
        if query.side == "real"
    }
    left = {key: grades for key, grades in qrels.items() if grades}
    lost = len(qrels) - len(left)
    counts = {"real: no passage that answers is left": lost} if lost else {}
    return Real({key: data.queries[key].text for key in left}, left, counts)
