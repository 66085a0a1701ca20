"""Decides which documents are held out, how many questions each passage is asked for, and which question goes where.

Called by `mining`. Every choice is a hash of the thing itself, so that documents which are added later change nothing
of what was decided, and paid for, before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from embexp.data.copies import near_duplicates
from embexp.errors import UserError
from embexp.mine.passages import Passage, Question, Rejected, Wanted, hashed

NEAR_TRAINING = "near a training question"
NEAR_TEST = "near a test question"


@dataclass(frozen=True)
class Sides:
    """How documents are held out.

    | field          | meaning                                                                                   |
    |----------------|-------------------------------------------------------------------------------------------|
    | test, dev      | about these shares of the documents, held out whole (test 1: for evaluation only)         |
    | seen           | about this share of the trained passages gives one of its questions to test               |
    | unit           | what is held out whole: document, or section (a whole path of headings) where files are few |
    | near_duplicate | from this similarity on two questions count as copies                                     |
    | seed           | of the choice                                                                             |
    """

    test: float = 0.2
    dev: float = 0.1
    seen: float = 0.1
    unit: Literal["document", "section"] = "document"
    near_duplicate: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.test <= 1 and 0 <= self.dev < 1 and 0 <= self.seen < 1):
            raise UserError(f"split shares are test {self.test}, dev {self.dev}, seen {self.seen}; each is from 0 to 1")
        if self.test < 1 and (self.dev == 0 or self.test + self.dev >= 1):
            raise UserError(
                f"split.test={self.test}, split.dev={self.dev}: train and dev need documents too (dev decides which "
                "checkpoint is best). Only split.test=1 makes a set for evaluation alone"
            )
        if self.unit not in ("document", "section"):
            raise UserError(f"split.unit={self.unit} must be document or section")
        if not 0 < self.near_duplicate <= 0.9:
            raise UserError(
                f"split.near_duplicate={self.near_duplicate} must be above 0 and at most 0.9, as a run checks"
            )

    def unit_of(self, passage: Passage) -> str:
        """What is held out whole together with this passage."""
        parts = [passage.document, *(passage.headings if self.unit == "section" else ())]
        return " > ".join(parts)

    def assigned(self, units: Iterable[str]) -> dict[str, str]:
        """Unit -> train, dev or test. A side that would stay empty gets the unit nearest to it.

        Raises UserError when there are fewer units than sides.
        """
        places = {unit: self._place("side", unit) for unit in sorted(set(units))}
        if self.test == 1:
            return dict.fromkeys(places, "test")
        bounds = {"test": (0.0, self.test), "dev": (self.test, self.test + self.dev), "train": (1.0, 1.0)}
        needed = [side for side, (low, high) in bounds.items() if high > low or side == "train"]
        if len(places) < len(needed):
            raise UserError(
                f"too little to hold out: {len(places)} {self.unit}s for {', '.join(needed)}. "
                + ("Add documents" if self.unit == "section" else "Set split.unit=section, or add documents")
            )
        sides = {unit: self._side(place) for unit, place in places.items()}
        for side in needed:
            if side not in sides.values():
                left = Counter(sides.values())
                spare = [unit for unit in places if left[sides[unit]] > 1]
                low, high = bounds[side]
                nearest = min(spare, key=lambda unit: min(abs(places[unit] - low), abs(places[unit] - high)))
                sides[nearest] = side
        return sides

    def _side(self, place: float) -> str:
        if place < self.test:
            return "test"
        return "dev" if place < self.test + self.dev else "train"

    def _place(self, *parts: str) -> float:
        """A number from 0 to 1 that depends on the seed and these texts alone."""
        return int(hashed(str(self.seed), *parts), 16) / 16**16

    def wanted(
        self,
        passages: Iterable[Passage],
        sides: Mapping[str, str],
        *,
        questions: Mapping[str, int],
        kinds: Sequence[str],
    ) -> list[Wanted]:
        """What every passage is asked for. questions: side -> how many per passage. The kinds go round, starting
        anywhere, so that they are mixed where a passage is asked for one question only."""
        found = []
        for passage in passages:
            start = int(self._place("kind", passage.id) * len(kinds))
            count = questions[sides[self.unit_of(passage)]]
            chosen = tuple(kinds[(start + place) % len(kinds)] for place in range(count))
            if chosen:
                found.append(Wanted(passage, chosen))
        return found

    def in_turn(self, wanted: Sequence[Wanted], sides: Mapping[str, str]) -> list[Wanted]:
        """The same in the order of asking, in which every side has had its share wherever a budget ends it.

        Within a side the order is by hash, so that all documents have their part of that.
        """
        of_side: dict[str, list[Wanted]] = defaultdict(list)
        for each in sorted(wanted, key=lambda each: self._place("turn", each.passage.id)):
            of_side[sides[self.unit_of(each.passage)]].append(each)
        turns = [
            (place / len(own), side != "test", side != "dev", each)  # test first where there is one call alone
            for side, own in of_side.items()
            for place, each in enumerate(own)
        ]
        return [each for *_, each in sorted(turns, key=lambda turn: turn[:3])]

    def deal(
        self, questions: Sequence[Question], passages: Mapping[str, Passage], sides: Mapping[str, str]
    ) -> dict[str, list[Question]]:
        """train, dev, unseen and seen: the last holds new questions on passages whose other questions train."""
        dealt: dict[str, list[Question]] = {"train": [], "dev": [], "unseen": [], "seen": []}
        of_passage: dict[str, list[Question]] = defaultdict(list)
        for question in questions:
            side = sides[self.unit_of(passages[question.passage])]
            if side == "train":
                of_passage[question.passage].append(question)
            else:
                dealt["unseen" if side == "test" else side].append(question)
        for passage, own in of_passage.items():
            if len(own) > 1 and self._place("seen", passage) < self.seen:
                taken = min(own, key=lambda question: self._place("question", question.id))
                dealt["seen"].append(taken)
                own = [question for question in own if question is not taken]
            dealt["train"] += own
        return dealt

    def without_copies(
        self, dealt: Mapping[str, Sequence[Question]], real: Mapping[str, str], learnt: Mapping[str, str]
    ) -> tuple[dict[str, list[Question]], list[Rejected]]:
        """Without questions that stand, exactly or nearly, on two sides.

        A real question stays and the mined ones near it go; dev and test lose what is near a training question; dev
        what is near a test question. real: id -> text. learnt: the same, of what was trained on before and is gone.
        """
        left = {name: list(questions) for name, questions in dealt.items()}
        rejected: list[Rejected] = []

        def drop(names: Sequence[str], near: Mapping[str, str], stage: str) -> None:
            for name in names:
                texts = {question.id: question.text for question in left[name]}
                copies = dict(near_duplicates(texts, near, threshold=self.near_duplicate))
                rejected.extend(
                    Rejected(question, stage, f"like: {near[copies[question.id]][:100]}")
                    for question in left[name]
                    if question.id in copies
                )
                left[name] = [question for question in left[name] if question.id not in copies]

        drop(["train", "dev", "unseen", "seen"], real, "near a real question")
        drop(["dev", "unseen", "seen"], {**learnt, **_texts(left["train"])}, NEAR_TRAINING)
        drop(["dev"], _texts([*left["unseen"], *left["seen"]]), NEAR_TEST)
        return left, rejected

    def chosen(self, questions: Iterable[Question], share: float) -> list[Question]:
        """About this share of the questions, for paraphrases."""
        return [question for question in questions if self._place("paraphrase", question.id) < share]


def _texts(questions: Iterable[Question]) -> dict[str, str]:
    return {question.id: question.text for question in questions}
