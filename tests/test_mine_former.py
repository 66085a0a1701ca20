"""A data set that is mined again on other documents: what stands, what is asked about, and that no side changes."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace

import pytest

from embexp.config.checks import CONFIG_FOLDER, plain
from embexp.mine import former, written
from embexp.mine.passages import Passage, Question, Rejected
from embexp.mine.real import Real
from embexp.mine.sides import Sides
from embexp.mine.written import DataSet, Query
from tests.handbook import record, rows

SIDES = Sides()
WORDS = ["".join(pair) for pair in itertools.product(("ba", "de", "ki", "lo", "mu", "ra", "te"), repeat=3)]
NAMES = [f"{number}.md" for number in range(40)]
SIDE_OF = SIDES.assigned(NAMES)
TRAIN, DEV, TEST = ([name for name in NAMES if SIDE_OF[name] == side] for side in ("train", "dev", "test"))


def passage(document, text, position=0, heading="H"):
    return Passage(text, document, (heading,), position, given_id=text.replace(" ", "-"))


def about(passage, **further):
    return {"passage": passage, "kind": "question", "span": "", "bm25_first": False, "cloze": False, **further}


def query(passage, side, *others, text=None, **further):
    return Query(text or f"what of {passage}", side, dict.fromkeys([passage, *others], 1), about(passage, **further))


@pytest.fixture
def old(tmp_path):
    """Documents on each side, with a question on each passage, written as mining writes them."""
    passages = [passage(TRAIN[0], "a0"), passage(TRAIN[0], "a1", 1), passage(TRAIN[1], "b0"), passage(DEV[0], "d0"),
                passage(TEST[0], "t0"), passage(TEST[1], "u0")]  # fmt: skip
    queries = {
        "qa0": query("a0", "train", "a1", bm25_first=True), "qa1": query("a1", "seen"), "qb0": query("b0", "train"),
        "qd0": query("d0", "dev"), "qt0": query("t0", "unseen"), "qu0": query("u0", "unseen"),
        "r": Query("a user asks", "real", {"a0": 2, "t0": 1}, {}),
        "p": Query("said otherwise", "paraphrase", {"b0": 1}, {"paraphrase_of": "qb0"}),
    }  # fmt: skip
    rejected = [Rejected(Question("it?", "b0", "question", "s"), "stands alone", "it")]
    by_id = {each.id: each for each in passages}
    data = DataSet(by_id, {key: each.document for key, each in by_id.items()}, queries, {"b0": "b"}, rejected,
                   {"q0": "asked long ago"})  # fmt: skip
    written.write(data, tmp_path, record={"stopped": None}, page="")
    return tmp_path, data


def pseudo_queries():
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return plain(compose("mine", ["documents=here", "miner=sentences", "model=static"]))


def held(old, passages, *, in_sections=False):
    return former.of(old[0], passages, SIDES, in_sections=in_sections, keep_real=True)


def texts(dealt):
    return {side: [question.text for question in questions] for side, questions in dealt.items() if questions}


def test_a_data_set_is_read_as_it_was_written(old):
    folder, data = old
    assert written.read(folder) == data


def test_only_what_is_new_or_changed_is_asked_about_and_what_is_gone_takes_its_questions_along(old):
    _, data = old
    a0, _, b0, d0, t0, _ = data.passages.values()
    changed = replace(b0, text="b0 in other words")
    found = held(old, [a0, changed, d0, t0, passage("new.md", "n0")])
    assert found.settled == {"a0", "d0", "t0"}
    assert texts(found.dealt) == {"train": ["what of a0"], "dev": ["what of d0"], "unseen": ["what of t0"]}
    assert {question.id: found.further["qa0"] for question in found.dealt["train"]}.popitem()[1] == ["a0"]
    assert found.easy == {"qa0"}
    assert (found.paraphrases, found.rejected) == ({}, [])
    assert found.real == Real({"r": "a user asks"}, {"r": {"a0": 2, "t0": 1}}, {})


def test_training_questions_that_are_gone_are_remembered_and_those_of_before_too(old):
    _, data = old
    a0, a1, b0, *others = data.passages.values()
    found = held(old, [a0, a1, replace(b0, text="b0 in other words"), *others])
    assert found.trained == {"qa0": "what of a0", "qb0": "what of b0", "q0": "asked long ago"}
    stands, gone = Question("what of a0", "a0", "question", ""), Question("what of b0", "b0", "question", "")
    dealt = {**found.dealt, "train": [stands]}
    known = {stands.id: stands.text, gone.id: gone.text}  # as mining names them
    assert replace(found, dealt=dealt, trained=known).learnt == {gone.id: "what of b0"}


def test_no_question_that_a_model_was_trained_on_tests_the_next_one(tmp_path):
    """Each section gets another last sentence: its passages are new, and most of its pseudo-queries as they were."""
    from embexp.mine.mining import mine

    config, rng = pseudo_queries(), random.Random(0)
    bodies = [[" ".join(rng.choices(WORDS, k=12)).capitalize() + "." for _ in range(8)] for _ in range(60)]
    for day, folder in enumerate((tmp_path / "first", tmp_path / "second", tmp_path / "third")):
        folder.mkdir()
        for number, body in enumerate(bodies):
            last = f"On day {day} somebody wanted another wording of this sentence."
            (folder / f"{number}.md").write_text(f"# Number {number}\n\n{' '.join([*body, last])}\n")
    learnt, before = set(), None
    for name in ("first", "second", "third"):
        data = tmp_path / f"{name}-mined"
        mine({**config, "documents": [str(tmp_path / name)]}, data, before=before)
        found = {side: {row["text"] for row in rows(data / "queries.jsonl") if row["metadata"]["side"] == side}
                 for side in ("train", "dev", "unseen", "seen")}  # fmt: skip
        assert not learnt & (found["dev"] | found["unseen"] | found["seen"])
        learnt |= found["train"]
        assert learnt == found["train"] | set(written.learnt_before(data).values())
        before = data
    assert len(learnt) > len(found["train"])


def test_a_document_under_a_new_name_stays_on_its_side(old):
    _, data = old
    renamed = next(name for name in (f"renamed{number}.md" for number in range(99))
                   if SIDES.assigned([*NAMES, name])[name] == "train")  # fmt: skip
    today = [replace(each, document=renamed) if each.id == "t0" else each for each in data.passages.values()]
    found = held(old, today)
    assert found.side_of[renamed] == "test"
    assert "what of t0" in texts(found.dealt)["unseen"]


def test_a_passage_in_a_document_of_another_side_is_asked_nothing_any_more(old):
    _, data = old
    today = [replace(each, document=TEST[1]) if each.id == "b0" else each for each in data.passages.values()]
    found = held(old, today)
    assert "what of b0" not in found.texts.values()
    assert "b0" in found.settled


def test_pseudo_queries_of_a_section_are_made_again_when_a_passage_of_it_is_new_and_keep_their_side(old):
    _, data = old
    today = [*data.passages.values(), passage(TRAIN[0], "a2", 2)]
    found = held(old, today, in_sections=True)
    assert found.settled == {"b0", "d0", "t0", "u0"}
    again = {"train": [], "dev": [], "unseen": [], "seen": []}
    ids = {"a1": "qa1"}

    class Known(Question):
        id = property(lambda self: ids.get(self.passage, self.passage))

    again["train"] = [Known("what of a1", "a1", "question", ""), Known("what of a2", "a2", "question", "")]
    again["unseen"] = [Known("what of a1", "a1", "question", "")]
    placed = found.placed(again)
    assert texts(placed) == {"seen": ["what of a1"], "train": ["what of a2"]}  # a known one never becomes unseen


def test_passages_that_a_budget_left_out_are_asked_about_the_next_time(old):
    folder, data = old
    stopped = json.loads((folder / "mining.json").read_text()) | {"stopped": "budget"}
    (folder / "mining.json").write_text(json.dumps(stopped))
    (folder / "queries.jsonl").write_text(
        "".join(line + "\n" for line in (folder / "queries.jsonl").read_text().splitlines() if '"qd0"' not in line)
    )
    assert held(old, list(data.passages.values())).settled == set(data.passages) - {"d0"}


def test_what_is_near_a_new_real_question_goes_and_what_was_near_an_old_one_is_gone_already(old):
    _, data = old
    found = held(old, list(data.passages.values()))
    users = found.with_real(Real({"s": "what of b0?"}, {"s": {"b0": 1}}, {}))
    assert set(users.queries) == {"r", "s"}
    cleared, gone = found.without_copies(SIDES, users)
    assert [each.question.text for each in gone] == ["what of b0"]
    assert "what of b0" not in texts(cleared.dealt)["train"]
    assert found.without_copies(SIDES, found.real) == (found, [])


def test_mining_on_a_former_data_set_gives_the_questions_of_mining_all_anew(embexp, handbook, tmp_path):
    """Pseudo-queries cost nothing, so that both ways can be held against each other."""
    from embexp.mine.mining import mine

    first = embexp.mine("documents=handbook", "miner=sentences").folder
    (handbook / "zebras.md").write_text((handbook / "lunch.md").read_text().replace("lunch", "zebras"))
    (handbook / "lunch.md").unlink()
    with (handbook / "travel.md").open("a") as file:
        file.write("\nWhoever forgets the receipts for travel asks the finance team for the long grey form in time.\n")
    whole = embexp.mine("documents=handbook", "miner=sentences", "out=whole")
    assert whole.code == 0, whole.output
    config = {**record(first)["config"], "documents": [str(handbook)]}
    mine(config, tmp_path / "renewed", before=first)
    found, anew, was = ({row["_id"]: row["metadata"]["side"] for row in rows(folder / "queries.jsonl")}
                        for folder in (tmp_path / "renewed", tmp_path / "whole", first))  # fmt: skip
    assert set(found) == set(anew)
    assert {key: side for key, side in was.items() if key in found} == {key: found[key] for key in was if key in found}
    assert 0 < len(set(found) - set(was)) < len(found) / 3
    answers = {row["_id"]: row["text"] for row in rows(tmp_path / "renewed" / "cloze.jsonl")}
    assert answers == {row["_id"]: row["text"] for row in rows(tmp_path / "whole" / "cloze.jsonl")}
    assert record(tmp_path / "renewed")["funnel"]["parsed"] < record(tmp_path / "whole")["funnel"]["parsed"] / 3


def test_an_llm_is_asked_about_new_passages_alone_and_an_earlier_answer_is_never_paid_again(embexp, handbook, tmp_path):
    from embexp.mine.mining import mine
    from tests.mine_server import Reply, Stub, items

    def plan(call):
        words = call.about.split()
        text = " ".join(words[:6])
        return Reply(
            items(*((kind, f"{kind} on {words[3]} {text}", text) for kind in ("question", "keywords", "problem")))
        )

    with Stub(plan) as server:
        llm = ["llm=local", "llm.model=stub", f"llm.base_url={server.base_url}", "paraphrases=0", "filter=none"]
        first = embexp.mine("documents=handbook", *llm)
        assert first.code == 0, first.output
        asked = len(server.calls)
        (handbook / "zebras.md").write_text((handbook / "lunch.md").read_text().replace("lunch", "zebras"))
        config = {**record(first.folder)["config"], "documents": [str(handbook)]}
        outcome = mine(config, tmp_path / "renewed", before=first.folder)
        assert outcome.stopped is None
        assert asked == 24
        assert len(server.calls) - asked == 2
        assert all("zebras" in about for about in server.abouts[asked:])
        mine({**config, "documents": [str(handbook)]}, tmp_path / "again", before=tmp_path / "renewed")
        assert len(server.calls) - asked == 2  # passages whose questions were all dropped are settled too
    was, now = (
        {row["_id"]: row["metadata"]["side"] for row in rows(folder / "queries.jsonl")}
        for folder in (first.folder, tmp_path / "renewed")
    )
    assert was.items() <= now.items()
    assert len(now) > len(was)
