"""Drops questions that would teach or measure the wrong thing, stage by stage, with counts and reasons.

Called by `mining` after the miner. The stages, cheapest first: parsed -> not a duplicate (`duplicates`) -> stands alone
(`standalone`) -> span in the passage -> answerable (a judge, where there is one) -> round trip (`round_trip`).
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from embexp.errors import UserError
from embexp.mine.duplicates import without_duplicates
from embexp.mine.passages import Judge, Mined, Passage, Question, Rejected
from embexp.mine.round_trip import RoundTrip, complete, places
from embexp.mine.sentences import KINDS as PSEUDO, WITHOUT_BLANKS
from embexp.mine.standalone import leans_on

__all__ = ["Funnel", "Sifted", "complete", "is_quoted"]

log = logging.getLogger(__name__)

PARSED, DUPLICATE, ALONE, SPAN, ANSWERABLE, ROUND_TRIP = (
    "parsed", "not a duplicate", "stands alone", "span in the passage", "answerable", "round trip",
)  # fmt: skip
NO_JUDGEMENT = "the judge gave no judgement, so they stayed"


@dataclass(frozen=True)
class Sifted:
    """What came through and what did not.

    counts: stage -> questions left after it, in order; stages that are switched off are not there. problems: what the
    miner could make no question of, and questions that the judge had no word for, with counts. easy: ids of kept
    questions whose passage BM25 has first.
    """

    kept: tuple[Question, ...]
    rejected: tuple[Rejected, ...]
    counts: Mapping[str, int]
    easy: frozenset[str]
    problems: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Funnel:
    """Which stages there are, and how strict they are.

    | field          | meaning                                                                                   |
    |----------------|-------------------------------------------------------------------------------------------|
    | near_duplicate | from this similarity on two questions count as the same; null drops only the very same on |
    |                | one passage                                                                               |
    | stands_alone   | whether questions that lean on their page are dropped                                     |
    | span           | whether an LLM's questions must come with words that stand in the passage                 |
    | round_trip     | how well a question must find its passage again; null leaves that out                     |
    """

    near_duplicate: float | None = 0.9
    stands_alone: bool = True
    span: bool = True
    round_trip: RoundTrip | None = None

    def __post_init__(self) -> None:
        if self.near_duplicate is not None and not 0 < self.near_duplicate <= 1:
            raise UserError(f"filter.near_duplicate={self.near_duplicate} must be above 0 and at most 1, or null")

    def sift(
        self,
        mined: Iterable[Mined],
        passages: Mapping[str, Passage],
        *,
        judge: Judge | None,
        held_out: frozenset[str] = frozenset(),
    ) -> Sifted:
        """Take questions through the stages.

        mined: consumed once, as it comes. passages: the whole knowledge base, by id. judge: None leaves out that stage.
        held_out: passages whose questions measure; they take no round trip, which would leave only what a search finds.
        """
        questions, problems = _gathered(mined)
        flow = _Flow(questions)
        kept, why = without_duplicates(questions, passages, threshold=self.near_duplicate)
        flow.replace(DUPLICATE, kept, why)
        if self.stands_alone:
            flow.drop(ALONE, {question.id: leans_on(question.text) for question in flow.left})
        if self.span:
            flow.drop(SPAN, {question.id: _missing(question, passages) for question in flow.left})
        answered: frozenset[str] = frozenset()
        if judge is not None:
            said = _judged(flow.left, passages, judge)
            flow.drop(ANSWERABLE, {key: "the judge says no" for key, answers in said.items() if answers is False})
            answered = frozenset(key for key, answers in said.items() if answers)
            problems[NO_JUDGEMENT] += sum(answers is None for answers in said.values())
        model = self.round_trip.model if self.round_trip else None
        log.info("searching for the passages of %d questions ...", len(flow.left))
        by_keywords, best = places(flow.left, passages, model=model)
        if self.round_trip is not None:
            training = [question for question in flow.left if question.passage not in held_out]
            flow.drop(ROUND_TRIP, self.round_trip.lost(training, best, answered))
        easy = frozenset(question.id for question in flow.left if by_keywords[question.id] == 1)
        return Sifted(tuple(flow.left), tuple(flow.rejected), flow.counts, easy, +problems)


class _Flow:
    """The questions left, and the account of those that are not."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.left = list(questions)
        self.rejected: list[Rejected] = []
        self.counts = {PARSED: len(self.left)}

    def drop(self, stage: str, reasons: Mapping[str, str | None]) -> None:
        """Drop questions that have a reason, by id."""
        gone = {place: reason for place, question in enumerate(self.left) if (reason := reasons.get(question.id))}
        self.replace(stage, [question for place, question in enumerate(self.left) if place not in gone], gone)

    def replace(self, stage: str, kept: Sequence[Question], gone: Mapping[int, str]) -> None:
        """Go on with `kept`; gone: place among those left -> why."""
        self.rejected += [Rejected(self.left[place], stage, reason) for place, reason in sorted(gone.items())]
        self.left = list(kept)
        self.counts[stage] = len(self.left)
        log.info("%s: %d questions left", stage, len(self.left))


def _gathered(mined: Iterable[Mined]) -> tuple[list[Question], Counter[str]]:
    questions: list[Question] = []
    problems: Counter[str] = Counter()
    for each in mined:
        questions += each.questions
        problems.update(each.problems)
    return questions, problems


def _missing(question: Question, passages: Mapping[str, Passage]) -> str | None:
    """Why the span of an LLM's question does not count; pseudo-queries are their own span."""
    if question.kind in PSEUDO:
        return None
    if not question.span.strip():
        return "names no words of the passage"
    if is_quoted(question.span, passages[question.passage].whole):
        return None
    return f"its words are not in the passage: {question.span[:100]!r}"


def _judged(questions: Sequence[Question], passages: Mapping[str, Passage], judge: Judge) -> dict[str, bool | None]:
    """Question id -> what the judge says; pseudo-queries are not asked about."""
    asked = [question for question in questions if question.kind not in PSEUDO]
    said = judge.answers([(question.text, passages[question.passage].whole) for question in asked])
    return {question.id: answers for question, answers in zip(asked, said, strict=True)}


def is_quoted(span: str, text: str) -> bool:
    """Whether the words of a span stand in a text, in order and together; parts beside an ellipsis each for itself.

    Case, white space, quotes, punctuation, Markdown markup and words parted at a line's end make no difference.
    """
    whole = f" {_words(text)} "
    start = 0
    for part in re.split(r"\.{3,}|…|\[\.\.\.\]", span):
        words = _words(part)
        if not words:
            continue
        place = whole.find(f" {words} ", start)
        if place < 0:
            return False
        start = place + len(words)
    return bool(_words(span))


def _words(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = re.sub(r"!?\[([^\[\]]*)\]\([^()\s]*\)", r"\1", plain)  # a link's address
    plain = re.sub(r"</?[a-z][^<>]*>", " ", plain)
    plain = re.sub(r"(?<=\w)[-\u00ad\u2010]\s*\n\s*(?=\w)", "", plain)
    plain = WITHOUT_BLANKS.sub(r" \g<0> ", plain)
    return " ".join(re.findall(r"[^\W_]+", plain))
