"""Mining, top to bottom: documents -> passages -> sides -> questions -> funnel -> slices -> a data set.

Read this module first; every step is one call into the module that does it. Called by `mine.cli`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from embexp.components import build
from embexp.errors import BusyError
from embexp.mine import knowledge, real, summary, written
from embexp.mine.llm import LLMJudge
from embexp.mine.passages import Miner
from embexp.mine.sides import Sides
from embexp.mine.written import DataSet, Query

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How mining ended. stopped: why it asked no further, null when all was asked."""

    stopped: str | None
    text: str  # what a person reads


def mine(config: Mapping[str, Any], folder: Path) -> Outcome:
    """Make the data set that the config describes in the folder, or say what it would cost.

    Raises UserError for what the user can mend, and BusyError when another process mines into the folder.
    """
    lock = FileLock(folder / ".mining.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(
            f"another process is mining into {folder}; wait for it, or set out= to another folder"
        ) from None
    try:
        return _mine(config, folder)
    finally:
        lock.release()


def _mine(config: Mapping[str, Any], folder: Path) -> Outcome:
    known = knowledge.read(config)
    by_id = {passage.id: passage for passage in known.passages}
    sides: Sides = build(config["split"], allowed=config["allowed_packages"])
    side_of = sides.assigned(sides.unit_of(passage) for passage in known.passages)
    wanted = sides.wanted(known.passages, side_of, questions=config["questions"], kinds=config["questions"]["kinds"])
    log.info("%s", summary.of_knowledge(known, side_of, wanted))
    with _client(config, folder) as client:
        miner: Miner = build(config["miner"], allowed=config["allowed_packages"])(client=client)
        if config["dry_run"]:
            return Outcome(
                None, summary.of_estimate(client.estimate(miner.requests(wanted), known.count_tokens), config)
            )
        judge = LLMJudge(client=client, prompt=config["prompts"]["judge"]) if config["judge"] else None
        asked = real.NONE if config["real_questions"] is None else _real(config, known, judge)
        sifted = _sifted(config, miner.mine(wanted), known, judge)
        dealt, copies = sides.without_copies(sides.deal(sifted.kept, by_id, side_of), asked.queries)
        if asked.queries and not miner.asks_llm:  # a pseudo-query says less than a real one
            dealt |= {"unseen": [], "seen": []}
        queries = written.queries_of(dealt, by_id, easy=sifted.easy, further=_further(config, dealt, known, judge))
        cloze = written.cloze_texts(queries, by_id)
        queries |= {key: Query(asked.queries[key], "real", grades, {}) for key, grades in asked.qrels.items()}
        queries |= _paraphrases(config, miner, client, sides.chosen(dealt["train"], config["paraphrases"]), queries)
        units = {key: sides.unit_of(passage) for key, passage in by_id.items()}
        data = DataSet(by_id, units, queries, cloze, [*sifted.rejected, *copies])
        record = summary.record(config, data, known, sifted, asked, client)
        page = summary.page(record, data)
        written.write(data, folder, record=record, page=page)
        return Outcome(client.stopped, summary.of_data_set(record, folder))
