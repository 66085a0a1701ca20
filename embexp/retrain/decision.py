"""From what was compared to a promotion, or to why not and what would help. Called by `retraining`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embexp.errors import counted
from embexp.evaluation.metrics import FEWEST_DOCUMENTS
from embexp.reporting.tables import FEWEST_FOR_INTERVAL, interval, signed


@dataclass(frozen=True)
class Decision:
    """Whether the new model is promoted, the reasons, and what would help where it is not."""

    promoted: bool
    reasons: list[str]
    advice: list[str]


def decided(found: Mapping[str, Any], *, margin: float, forgetting: Mapping[str, Any] | None) -> Decision:
    """Promote what is better, or not worse on the old documents and better on the new ones.

    found: see `comparing`. margin: not worse means that the interval's lower end is above minus this. forgetting: of
    the new run's result.json; a gate that was not passed forbids promotion.
    """
    parts = {name: part for name, part in found["parts"].items() if part is not None}
    whole, old, new = parts.get("all"), parts.get("old"), parts.get("new")
    said = [_told(f"on {words}", parts[name]) for name, words in _WORDS.items() if name in parts]
    if whole is None:
        return Decision(False, ["no question is left that neither model was trained on"], [_MORE])
    if forgetting is not None and forgetting.get("passed") is False:
        reason = "the new model has forgotten more than max_forgetting allows (its own report has the figures)"
        return Decision(False, [reason, *said], ["a smaller trainer.learning_rate, or merging with the base model"])
    if whole["verdict"] == "better":
        return Decision(True, ["better on today's test", *said], [])
    not_worse = old is not None and old["documents"] >= FEWEST_DOCUMENTS and old["delta"]["ci_low"] > -margin
    if not_worse and new is not None and new["verdict"] == "better" and whole["verdict"] != "worse":
        return Decision(True, [f"better on what is new, and not worse by {margin:g} on what is not", *said], [])
    return Decision(False, [_why_not(whole, old, new, margin), *said], _advice(whole, old, new, margin))


_WORDS = {"all": "all of today's test", "old": "documents as they were", "new": "new and changed documents"}
_MORE = "more questions to test on: real ones (real_questions=), or a mined data set in place of one that is cut anew"


def _told(where: str, part: Mapping[str, Any]) -> str:
    delta = part["delta"]
    few = delta["documents"] < FEWEST_FOR_INTERVAL
    sure = "too few documents for an interval" if few else f"95 % interval {interval(delta)}"
    return (
        f"{where}: {part['current']:.3f} -> {part['new']:.3f} ({signed(delta)}, {sure}; "
        f"{counted(part['queries'], 'question')} on {counted(part['documents'], 'document')})"
    )


def _why_not(
    whole: Mapping[str, Any], old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, margin: float
) -> str:
    if whole["verdict"] == "worse":
        return "worse on today's test"
    if whole["delta"]["absolute"] < 0:
        return "lower on today's test, if not surely worse"
    if new is None:
        return "not better on today's test, which has no question on what is new"
    if new["verdict"] != "better":
        few = f": it has {new['documents']:,}, and {FEWEST_DOCUMENTS} are needed to be sure"
        return f"not better on what is new{few if new['documents'] < FEWEST_DOCUMENTS else ''}"
    if old is None or old["documents"] < FEWEST_DOCUMENTS:
        return f"better on what is new, and too few documents as they were to rule out a loss ({FEWEST_DOCUMENTS})"
    return f"better on what is new, and a loss of {margin:g} on documents as they were is not ruled out"


def _advice(
    whole: Mapping[str, Any], old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, margin: float
) -> list[str]:
    advice = []
    if whole["delta"]["absolute"] < 0 or (old is not None and old["verdict"] == "worse"):
        advice.append(
            "another recipe: a smaller trainer.learning_rate, fewer epochs, or start=base in place of start=tuned"
        )
    if new is None or new["documents"] < FEWEST_DOCUMENTS:
        advice.append("more that is new: what was mined is kept, and the next call goes on from it")
    elif whole["verdict"] != "worse" and new["verdict"] != "better":
        half = (whole["delta"]["ci_high"] - whole["delta"]["ci_low"]) / 2
        advice.append(
            f"more questions: with {whole['queries']:,} a difference below about {half:.3f} can't be told from none. "
            "real_questions= says most"
        )
    if old is not None and new is not None and new["verdict"] == "better" and old["delta"]["ci_low"] <= -margin:
        advice.append(
            "more questions on documents as they were. margin= is what loss would be acceptable there: to be set "
            "before the figures are known, since one that is set by them lets any model pass"
        )
    return advice
