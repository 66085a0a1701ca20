"""Finds questions that are asked twice, and those asked of things that do not belong together. Called by `funnel`.

| the same words on              | then                                                                                |
|--------------------------------|-------------------------------------------------------------------------------------|
| one passage                    | the first stays                                                                     |
| passages of one section        | the first stays, and the other passages answer it too                               |
| other documents or sections    | all go: every one of them answers, or none does, and they may stand on two sides    |

Nearly the same words: the first stays. But "How do I install Foo 2?" and "How do I install Foo 3?" are 97 % alike and
ask two things, so questions that differ in a number stay, and on two passages also those that differ in a name, where
each says something that the other does not.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from embexp.data.copies import near_duplicates
from embexp.mine.passages import Passage, Question
from embexp.mine.standalone import nameless

Reasons = dict[int, str]  # place of a question -> why it goes


def without_duplicates(
    questions: Sequence[Question], passages: Mapping[str, Passage], *, threshold: float | None
) -> tuple[list[Question], Reasons]:
    """The questions that stay, with further passages where several were asked the same, and why the others go.

    threshold: from this similarity on (embexp.data.copies) two questions are nearly the same; None only drops one
    that stands twice on one passage.
    """
    reasons: Reasons = {}
    further: dict[int, list[str]] = defaultdict(list)
    if threshold is None:
        seen: set[str] = set()
        for place, question in enumerate(questions):
            if question.id in seen:
                reasons[place] = "stands twice on its passage"
            seen.add(question.id)
    else:
        _same_words(questions, passages, reasons, further)
        _nearly_the_same(questions, reasons, threshold)
    kept = [
        replace(question, also=_unique(question, further[place])) if further.get(place) else question
        for place, question in enumerate(questions)
        if place not in reasons
    ]
    return kept, reasons


def _same_words(
    questions: Sequence[Question], passages: Mapping[str, Passage], reasons: Reasons, further: dict[int, list[str]]
) -> None:
    groups: dict[str, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        groups[" ".join(question.text.casefold().split()).rstrip(" .?!")].append(place)
    for places in groups.values():
        units = {_unit(passages[questions[place].passage]) for place in places}
        first = places[0]
        for place in places if len(units) > 1 else places[1:]:
            if len(units) > 1:
                reasons[place] = f"asked in the same words of {len(units)} documents or sections"
            else:
                reasons[place] = f"asked in the same words of passage {questions[first].passage}"
                further[first] += [questions[place].passage, *questions[place].also]


def _nearly_the_same(questions: Sequence[Question], reasons: Reasons, threshold: float) -> None:
    texts = {place: question.text for place, question in enumerate(questions) if place not in reasons}
    for first, other in near_duplicates(_keyed(texts), _keyed(texts), threshold=threshold):
        place, later = int(first), int(other)
        both_left = place < later and place not in reasons and later not in reasons
        apart = questions[place].passage != questions[later].passage
        if both_left and not _ask_two_things(texts[place], texts[later], apart=apart):
            reasons[later] = f"nearly the same as: {texts[place][:100]}"


def _unit(passage: Passage) -> tuple[str, ...]:
    """What is held out whole together at the finest (see `sides`)."""
    return (passage.document, *passage.headings)


def _unique(question: Question, further: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one for one in (*question.also, *further) if one != question.passage))


def _keyed(texts: Mapping[int, str]) -> dict[str, str]:
    return {str(place): text for place, text in texts.items()}


def _ask_two_things(text: str, other: str, *, apart: bool) -> bool:
    """Whether nearly the same texts differ in a number or, on two passages (apart), in what they name."""
    left, right = (re.findall(r"\w+(?:[.'’]\w+)*", each.casefold()) for each in (text, other))
    if sorted(filter(_has_digit, left)) != sorted(filter(_has_digit, right)):
        return True
    own, others = (set(words) - nameless for words in (left, right))
    return apart and bool(own - others) and bool(others - own)


def _has_digit(word: str) -> bool:
    return any(character.isdigit() for character in word)
