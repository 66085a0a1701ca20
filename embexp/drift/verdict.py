"""From what was found to `ok`, `watch` or `retrain`, with the reasons in words. Called by `drifting`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from embexp.drift.differences import Differences
from embexp.drift.recall import Recalled
from embexp.drift.shift import Shift
from embexp.errors import counted

Level = Literal["ok", "watch", "retrain"]
LEVELS: tuple[Level, ...] = ("ok", "watch", "retrain")
TRAINED = (
    " Training had questions on some of these documents (there are too few without to compare them alone), and that by "
    "itself can make a difference."
)


@dataclass(frozen=True)
class Found:
    """What was measured; None where there was too little to test, or nothing was asked for."""

    differences: Differences
    shift: Shift | None
    questions: Shift | None
    recalled: Recalled | None


def verdict(found: Found, config: Mapping[str, Any]) -> tuple[Level, list[str]]:
    """The verdict and its reasons, the gravest first; what was looked at and gives no reason is told too."""
    said = [*_of_shift(found, config), *_of_recall(found, config), *_of_shares(found, config)]
    said.sort(key=lambda reason: -LEVELS.index(reason[0]))
    return said[0][0] if said else "ok", [words for _, words in said]


def _of_shift(found: Found, config: Mapping[str, Any]) -> list[tuple[Level, str]]:
    shift, questions, settings = found.shift, found.questions, config["shift"]
    tests = sum(test is not None for test in (shift, questions))
    said: list[tuple[Level, str]] = []
    if shift is not None:
        p_value = min(1.0, shift.tested.p_value * tests)  # Bonferroni
        on = f"{counted(shift.new, 'new or changed document')} against {shift.known:,} that the run knew"
        if p_value > settings["p_value"]:
            said.append(("ok", f"No shift was found in {on} (p = {p_value:.4f})."))
        else:
            much = found.differences.share >= config["share"]["retrain"] and shift.alike
            words = f"What is new lies elsewhere: {on}, p = {p_value:.4f}.{'' if shift.alike else TRAINED}"
            said.append(("retrain" if much else "watch", words))
    if questions is not None:
        p_value = min(1.0, questions.tested.p_value * tests)
        on = f"{counted(questions.new, 'question')} of the log against those on {questions.known:,} documents in test"
        is_found = p_value <= settings["p_value"]
        told = f"Users ask other questions: {on}, p = {p_value:.4f}." if is_found else None
        said.append(("watch" if is_found else "ok", told or f"No shift was found in {on} (p = {p_value:.4f})."))
    return said


def _of_recall(found: Found, config: Mapping[str, Any]) -> list[tuple[Level, str]]:
    recalled = found.recalled
    if recalled is None:
        return []
    gap = recalled.difference
    words = (
        f"recall@{recalled.at} on what is new is {recalled.new:.3f} "
        f"({counted(recalled.questions['new'], 'question')}), on what the run knew {recalled.known:.3f} "
        f"({recalled.questions['known']:,}): {gap.value:+.3f}, 95 % interval "
        f"{gap.ci_low:+.3f} to {gap.ci_high:+.3f}"
    )
    if not recalled.enough:
        return [("ok", f"{words}; too few documents ({recalled.documents['new']:,} new) to judge by.")]
    if gap.ci_high >= 0:
        return [("ok", f"{words}: not worse for sure.")]
    lost = -gap.value >= config["recall"]["drop"] and recalled.alike
    worse = f"{words}: questions on what is new are answered worse.{'' if recalled.alike else TRAINED}"
    return [("retrain" if lost else "watch", worse)]


def _of_shares(found: Found, config: Mapping[str, Any]) -> list[tuple[Level, str]]:
    """What so large a change means where it could not be tested."""
    differences, limits = found.differences, config["share"]
    said: list[tuple[Level, str]] = []
    tested = found.shift is not None and found.recalled is not None and found.recalled.enough
    if differences.share >= limits["watch"] and not tested:
        said.append(("watch", f"{differences.share:.0%} of today's passages are new or changed, and there are too few "
                              "documents, new ones or such as are as they were, to test all."))  # fmt: skip
    known = len(differences.removed) + len(differences.kept) + len(differences.changed)
    gone = len(differences.removed) / known
    if gone >= limits["retrain"]:
        said.append(("watch", f"{gone:.0%} of the passages that the run knew are gone."))
    if not differences.fresh:
        said.append(("ok", "No passage is new or changed."))
    return said
