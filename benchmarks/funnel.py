"""The filter on questions with planted faults: precision and recall per stage, as Markdown.

python benchmarks/funnel.py [--seed 0] [--judge-misses 0.1] [--judge-too-strict 0.05]
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.planted import Planted, knowledge, questions
from embexp.mine.funnel import Funnel, Sifted
from embexp.mine.passages import Mined
from embexp.mine.round_trip import RoundTrip

HAND = [
    ("good ones that look bad", None),
    ("that lean on their page", "stands alone"),
    ("duplicates in other words", "not a duplicate"),
]
STAGES = ["not a duplicate", "stands alone", "span in the passage", "answerable", "round trip"]


class PlantedJudge:
    """Knows what is answered and errs at the given rates: `misses` of the unanswered, `strict` of the others."""

    def __init__(self, planted: Sequence[Planted], *, misses: float, strict: float, seed: int) -> None:
        self._unanswered = {each.question.text for each in planted if each.fault in ("answerable", "round trip")}
        self._misses, self._strict, self._rng = misses, strict, random.Random(seed)

    def answers(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        return [self._says(question) for question, _ in pairs]

    def _says(self, question: str) -> bool | None:
        if self._rng.random() < 0.02:
            return None
        wrong = self._rng.random()
        return wrong < self._misses if question in self._unanswered else wrong >= self._strict


def sifted(planted: Sequence[Planted], passages: dict, judge: PlantedJudge | None) -> Sifted:  # type: ignore[type-arg]
    mined = [Mined(passages[each.question.passage], (each.question,)) for each in planted]
    return Funnel(round_trip=RoundTrip()).sift(mined, passages, judge=judge)


def table(planted: Sequence[Planted], found: Sifted) -> str:
    """A row per stage: what it was there for, what it dropped, and how much of that was rightly dropped."""
    fault = {each.question.id: each.fault for each in planted}
    bad_at = Counter(each.fault for each in planted)
    gone = {each.question.id: each.stage for each in found.rejected}
    lines = [
        "| stage | planted for it | dropped by it | of these bad | precision | dropped here | dropped anywhere |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for stage in STAGES:
        if stage not in found.counts:
            continue
        dropped = [key for key, at in gone.items() if at == stage]
        bad = sum(fault[key] is not None for key in dropped)
        own = [key for key, of in fault.items() if of == stage]
        here, anywhere = (sum(gone.get(key) in at for key in own) for at in ((stage,), STAGES))
        precision = f"{bad / len(dropped):.3f}" if dropped else "-"
        lines.append(
            f"| {stage} | {bad_at[stage]} | {len(dropped)} | {bad} | {precision} | {here / len(own):.3f} "
            f"| {anywhere / len(own):.3f} |"
        )
    good = [key for key, of in fault.items() if of is None]
    kept = [each.id for each in found.kept]
    lines.append(
        f"\nGood questions kept: {sum(key in set(kept) for key in good)} of {len(good)}; "
        f"of what is kept {sum(fault[key] is None for key in kept) / len(kept):.3f} is good "
        f"({len(good) / len(planted):.3f} before)."
    )
    return "\n".join(lines)


def by_hand(planted: Sequence[Planted], found: Sifted) -> str:
    """How the questions written by hand fared, with those that went wrong."""
    gone = {each.question.id: each.stage for each in found.rejected}
    lines = []
    for name, fault in HAND:
        own = [each for each in planted if each.by_hand and each.fault == fault]
        wrong = [each for each in own if (each.question.id in gone) == (fault is None)]
        at = Counter(gone.get(each.question.id, "kept") for each in own)
        ends = ", ".join(f"{stage} {count}" for stage, count in at.most_common())
        lines.append(
            f"Written by hand, {name}: {len(own) - len(wrong)} of {len(own)} right ({ends})"
            + (". Wrong:" if wrong else "")
        )
        lines += [f"- {each.question.text}" for each in wrong[:8]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--judge-misses", type=float, default=0.1, help="share of unanswered that the judge lets through"
    )
    parser.add_argument("--judge-too-strict", type=float, default=0.05, help="share of answered that it refuses")
    options = parser.parse_args()
    passages = knowledge(options.seed)
    planted = questions(passages, options.seed)
    judge = PlantedJudge(planted, misses=options.judge_misses, strict=options.judge_too_strict, seed=options.seed)
    print(f"{len(planted)} questions on {len(passages)} passages\n")
    without = sifted(planted, passages, None)
    for name, found in (("without a judge", without), ("with a judge", sifted(planted, passages, judge))):
        print(f"{name}:\n\n{table(planted, found)}\n")
    print(by_hand(planted, without))


if __name__ == "__main__":
    main()
