"""Mining, top to bottom: documents -> passages -> sides -> questions -> funnel -> slices -> a data set.

Read this module first; every step is one call into the module that does it. Called by `mine.cli`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from embexp.config.components import build
from embexp.errors import BusyError, UserError
from embexp.mine import former, knowledge, real, summary, written
from embexp.mine.client import Client
from embexp.mine.former import Former
from embexp.mine.funnel import Sifted, complete
from embexp.mine.knowledge import Knowledge
from embexp.mine.llm import LLMJudge, Paraphraser
from embexp.mine.passages import Judge, Miner, Passage, Question, Wanted, hashed
from embexp.mine.real import Real
from embexp.mine.sides import Sides
from embexp.mine.written import DataSet, Query
from embexp.models.sources import identified
from embexp.service.budget import Budget

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How mining ended. stopped: why it asked no further, null when all was asked. larger: name in `budget` -> a cap
    that would let it go on, where a cap stopped it."""

    stopped: str | None
    text: str  # what a person reads
    larger: Mapping[str, str] = field(default_factory=dict)


def mine(
    config: Mapping[str, Any], folder: Path, *, known: Knowledge | None = None, before: Path | None = None
) -> Outcome:
    """Make the data set that the config describes in the folder, or say what it would cost.

    known: the knowledge base, where it is read already. before: a data set that was mined earlier, of which all stands
    that is about passages that are as they were (`former`); only the others are asked about. Raises UserError for what
    the user can mend, and BusyError when another process mines into the folder.
    """
    with _alone(folder):
        judging = _of_the_round_trip(config)  # had before anything is read or paid for
        known = known or knowledge.read(config, folder)
        if judging is not None and judging["content"] == known.model.origin["content"]:
            raise UserError(
                f"filter.round_trip.model={judging['path']} is the model that is to be tuned; what it finds already is "
                "least worth learning. Name another one, or leave it out: keyword search does it then"
            )
        sides: Sides = build(config["split"], allowed=config["allowed_packages"])
        with _client(config, folder) as client:
            miner: Miner = build(config["miner"], allowed=config["allowed_packages"])(client=client)
            stands = _former(config, known, sides, miner, before)
            side_of = stands.side_of or sides.assigned(sides.unit_of(passage) for passage in known.passages)
            asked = config["questions"]
            wanted = sides.wanted(known.passages, side_of, questions=asked, kinds=asked["kinds"])
            wanted = stands.unasked(wanted)
            log.info("%s", summary.of_knowledge(known, side_of, wanted))
            if config["dry_run"]:
                estimate = client.estimate(miner.requests(wanted), known.count_tokens)
                return Outcome(None, summary.of_estimate(estimate, config))
            made = _Making(config, known, sides, side_of, client, miner, stands).data_set(wanted)
            if client.stopped is not None and (not made.record["kinds"] or written.is_whole(folder)):
                text = "Nothing was written; what was answered is kept."
                return Outcome(client.stopped, text, client.larger_caps)
            written.write(made.data, folder, record=made.record, page=summary.page(made.record, made.data))
            stopped = client.stopped or summary.unanswered(client)
            return Outcome(stopped, summary.of_data_set(made.record, folder), client.larger_caps)


@dataclass(frozen=True)
class _Made:
    data: DataSet
    record: Mapping[str, Any]  # the content of mining.json


@dataclass(frozen=True)
class _Making:
    """The parts that the steps after the passages share."""

    config: Mapping[str, Any]
    known: Knowledge
    sides: Sides
    side_of: Mapping[str, str]
    client: Client
    miner: Miner
    stands: Former

    def data_set(self, wanted: Sequence[Wanted]) -> _Made:
        """Ask, sift, deal out, and add the other slices."""
        by_id = {passage.id: passage for passage in self.known.passages}
        users = self._real(by_id)
        funnel = build(self.config["filter"], allowed=self.config["allowed_packages"])
        place = {each.passage.id: place for place, each in enumerate(wanted)}
        # answers come in any order; what is a copy of what, and what training sees first, must not depend on it
        asked_of = self.sides.in_turn(wanted, self.side_of)
        mined = sorted(self.miner.mine(asked_of), key=lambda each: place[each.passage.id])
        units = {key: self.sides.unit_of(passage) for key, passage in by_id.items()}
        side_of = {key: self.side_of[unit] for key, unit in units.items()}
        held_out = frozenset(key for key, side in side_of.items() if side != "train")
        sifted: Sifted = funnel.sift(mined, by_id, judge=self._judge(needed=self.config["judge"]), held_out=held_out)
        stands, near_real = self.stands.without_copies(self.sides, users)
        dealt = stands.placed(self.sides.deal(sifted.kept, by_id, self.side_of))
        dealt, copies = self.sides.without_copies(dealt, {**stands.texts, **users.queries}, stands.learnt)
        further = self._further([question for questions in dealt.values() for question in questions], by_id)
        asked_now, dealt = dealt["train"], stands.joined(dealt)
        if users.queries and not self.miner.asks_llm:  # a pseudo-query says less than a real question
            dealt |= {"unseen": [], "seen": []}
        easy, further = sifted.easy | stands.easy, {**stands.further, **further}
        queries = written.queries_of(dealt, by_id, easy=easy, further=further, side_of=side_of)
        cloze = written.cloze_texts(queries, by_id)
        queries |= {key: Query(text, "real", users.qrels[key], {}) for key, text in users.queries.items()}
        paraphrases, problems = self._paraphrases(asked_now, queries)
        queries |= paraphrases
        rejected = [*stands.rejected, *near_real, *sifted.rejected, *copies]
        again = {question.id for question in dealt["train"]}  # a pseudo-query may be made a second time
        learnt = {key: text for key, text in stands.learnt.items() if key not in again}
        data = DataSet(by_id, units, queries, cloze, rejected, learnt)
        return _Made(data, summary.record(self.config, data, self.known, sifted, users, problems, self.client))

    def _real(self, by_id: Mapping[str, Passage]) -> Real:
        named = self.config["real_questions"]
        if named is None:
            return self.stands.real
        if named == "dataset":
            assert self.known.splits is not None  # the config is checked
            return real.of_data_set(self.known.splits, by_id)
        asks = self.miner.asks_llm or self.config["judge"]
        found = real.read(named, by_id, judge=self._judge(needed=asks), model=self.known.model)
        return self.stands.with_real(found)

    def _judge(self, *, needed: bool) -> Judge | None:
        return LLMJudge(client=self.client, prompt=self.config["prompts"]["judge"]) if needed else None

    def _further(self, mined: Sequence[Question], by_id: Mapping[str, Passage]) -> Mapping[str, Sequence[str]]:
        if not self.config["complete"]:
            return {}
        judge = self._judge(needed=True)
        assert judge is not None
        return complete(mined, by_id, judge, top=self.config["complete"])

    def _paraphrases(
        self, trained: Sequence[Question], queries: Mapping[str, Query]
    ) -> tuple[dict[str, Query], Mapping[str, int]]:
        said_before = {
            key: Query(query.text, "paraphrase", queries[of].answers, query.about)
            for of, (key, query) in self.stands.paraphrases.items()
            if of in queries
        }
        if not self.miner.asks_llm or not self.config["paraphrases"]:
            return said_before, {}
        chosen = {question.id: question for question in self.sides.chosen(trained, self.config["paraphrases"])}
        paraphraser = Paraphraser(client=self.client, prompt=self.config["prompts"]["paraphrase"])
        said = sorted(paraphraser.paraphrase({key: question.text for key, question in chosen.items()}))
        other = [(key, text) for key, text in said if text.casefold().split() != chosen[key].text.casefold().split()]
        found = {
            hashed("paraphrase", key, text): Query(text, "paraphrase", queries[key].answers, {"paraphrase_of": key})
            for key, text in other
        }
        same = {"the same words again": len(said) - len(other)} if len(said) > len(other) else {}
        problems = {f"paraphrase: {name}": count for name, count in (same | paraphraser.problems).items()}
        return said_before | found, problems


def _former(config: Mapping[str, Any], known: Knowledge, sides: Sides, miner: Miner, before: Path | None) -> Former:
    if before is None:
        return Former()
    keep_real = config["real_questions"] != "dataset"  # today's have them
    return former.of(before, known.passages, sides, in_sections=not miner.asks_llm, keep_real=keep_real)


def _client(config: Mapping[str, Any], folder: Path) -> Client:
    server = build(config["llm"], allowed=config["allowed_packages"])
    budget = Budget(**config["budget"])
    return Client(server, journal=folder / "answers.jsonl", budget=budget, prices=config["prices"]["models"])


def _of_the_round_trip(config: Mapping[str, Any]) -> Mapping[str, str | None] | None:
    """What the filter's model is known by, where there is one. Raises UserError when it can't be had."""
    round_trip = config["filter"].get("round_trip")
    if not isinstance(round_trip, Mapping) or not round_trip.get("model"):
        return None
    return identified(round_trip["model"], setting="filter.round_trip.model")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".mining.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BusyError(f"another process is mining into {folder}; wait for it, or set another out=") from error
    try:
        yield
    finally:
        lock.release()
