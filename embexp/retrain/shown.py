"""What retraining says at its end, in retrain.md, and with `status`. Called by `retrain.cli`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embexp.reporting.tables import Block, Table, interval, markdown, number
from embexp.retrain import attempts
from embexp.retrain.attempts import Attempt
from embexp.retrain.pointer import Models

if TYPE_CHECKING:  # torch
    from embexp.retrain.retraining import Outcome

NAMES = {"all": "all of today's test", "old": "documents as they were", "new": "new and changed documents"}
LINES = 10  # of the history
AGAIN = (
    "The test on these documents has now decided {times} times, each time about another margin or recipe: the more "
    "often, the less a promotion says."
)


def text(outcome: Outcome, models: Models) -> str:
    """The outcome with its reasons, the comparison, and where to look."""
    attempt = outcome.attempt
    blocks: list[Block | str] = [f"**{outcome.event}**: {outcome.reasons[0]}."]
    blocks += [_list(outcome.reasons[1:])] if outcome.reasons[1:] else []
    blocks += ["What would help:", _list(outcome.advice)] if outcome.advice else []
    if attempt is not None:
        blocks += [*attempt.state.get("remarks", ()), *_compared(attempt.state)]
        blocks += [AGAIN.format(times=attempt.times)] if attempt.times > 1 else []
    if outcome.removed:
        blocks.append(f"Removed, as keep= says: {', '.join(outcome.removed)}.")
    current = models.folder / "current"
    lines = [f"current: {current} -> {models.name_of(outcome.current)}"]
    if attempt is not None and (attempt.run / "report.html").is_file():
        lines.append(f"report:  {attempt.run / 'report.html'}")
    return "\n\n".join([markdown(blocks), "\n".join(lines)])


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _compared(state: Mapping[str, Any]) -> list[Block | str]:
    found = state.get("compared")
    if not found:
        return []
    lines = [
        [NAMES.get(name, name), f"{part['queries']:,}", f"{part['documents']:,}", number(part["current"]),
         number(part["new"]), interval(part["delta"]), part["verdict"]]
        for name, part in found["parts"].items()
        if part is not None
    ]  # fmt: skip
    metric = found["metric"]
    others = {"the base model": state["base"][metric], "BM25": state["bm25"].get(metric)}
    beside = ", ".join(f"{name} {number(score)}" for name, score in others.items() if score is not None)
    table = Table([metric, "questions", "documents", "current", "new", "new - current, 95 %", "verdict"], lines)
    left_out = [
        f"{found['unfair']:,} questions are left out: the current model was trained on them, or on their documents."
    ]
    return [table, f"On all of it {beside}.", *(left_out if found["unfair"] else [])]


def status(models: Models) -> str:
    """What is served, what came before it, and what was tried."""
    current = models.current
    lines = [f"models:  {models.folder}", f"current: {models.name_of(current) if current else 'none yet'}"]
    for line in models.history()[-LINES:]:
        lines.append(f"{line['time']}  {line['event']}: {line['model']}  ({line['reasons'][0]})")
    tried = [each for each in attempts.all_in(models) if not (each.decision or {}).get("promoted")]
    lines += [f"attempt {each.folder.name}: {_state(each)}" for each in tried]
    return "\n".join(lines)


def _state(attempt: Attempt) -> str:
    if attempt.decision is None:
        return "open; the same command goes on with it"
    return f"not promoted: {attempt.decision['reasons'][0]}  ({attempt.folder / 'retrain.md'})"
