from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st

from embexp.errors import UserError
from embexp.mine import summary
from embexp.mine.passages import Passage, Question
from embexp.mine.sides import Sides

NAMES = [f"doc{i}.md" for i in range(200)]
QUESTIONS = {"train": 3, "dev": 1, "test": 1}
KINDS = ["question", "keywords", "problem"]


def passages(count, document="a.md"):
    return [Passage(f"text {i}", document, ("Title", f"Section {i}"), i) for i in range(count)]


def question(passage, text, kind="question"):
    return Question(text, passage.id, kind, "text")


def test_about_the_asked_shares_of_the_documents_are_held_out():
    sides = list(Sides(test=0.2, dev=0.1).assigned(NAMES).values())
    assert 25 <= sides.count("test") <= 55  # 40, three standard deviations of 5.7 to each side
    assert 8 <= sides.count("dev") <= 34


def test_documents_added_later_change_no_side():
    before = Sides().assigned(NAMES)
    after = Sides().assigned([*NAMES, *(f"new{i}.md" for i in range(10))])
    assert {name: after[name] for name in NAMES} == before


def test_another_seed_holds_out_other_documents():
    assert Sides(seed=1).assigned(NAMES) != Sides(seed=2).assigned(NAMES)


@given(st.sets(st.text(min_size=1), min_size=3, max_size=8))
def test_no_side_stays_empty_however_few_documents_there_are(names):
    assert set(Sides().assigned(names).values()) == {"train", "dev", "test"}


def test_two_documents_are_too_few_and_the_message_says_what_to_set():
    with pytest.raises(UserError, match=r"2 documents for test, dev, train. Set split.unit=section"):
        Sides().assigned(["a", "b"])


def test_without_a_test_share_two_documents_are_enough():
    assert set(Sides(test=0, dev=0.5).assigned(["a", "b"]).values()) == {"train", "dev"}


def test_wherever_asking_ends_each_side_has_had_its_share():
    sides = {f"doc{i}.md": side for i, side in enumerate(["test"] * 2 + ["dev"] + ["train"] * 7)}
    many = [passage for name in sides for passage in passages(10, document=name)]
    many = [Passage(f"{each.document} {each.text}", each.document) for each in many]
    wanted = Sides().wanted(many, sides, questions=QUESTIONS, kinds=KINDS)
    order = [sides[each.passage.document] for each in Sides().in_turn(wanted, sides)]
    assert set(order[:3]) == {"test", "dev", "train"}
    for end in (10, 30, 50, 100):  # 20 % test, 10 % dev, 70 % train
        assert [order[:end].count(side) for side in ("test", "dev", "train")] == pytest.approx(
            [0.2 * end, 0.1 * end, 0.7 * end], abs=1
        )


def test_the_order_of_asking_does_not_depend_on_the_order_of_files():
    sides = {"a.md": "test", "b.md": "train"}
    wanted = Sides().wanted(
        [*passages(5, "a.md"), *(Passage(f"b {i}", "b.md") for i in range(9))], sides, questions=QUESTIONS, kinds=KINDS
    )
    assert Sides().in_turn(wanted[::-1], sides) == Sides().in_turn(wanted, sides)
    assert sorted(each.passage.id for each in Sides().in_turn(wanted, sides)) == sorted(w.passage.id for w in wanted)


def test_test_one_holds_out_everything():
    assert set(Sides(test=1).assigned(NAMES).values()) == {"test"}


@pytest.mark.parametrize("shares", [{"test": 1.2}, {"test": 0.5, "dev": 0.5}, {"dev": 0}, {"seen": 1.0}])
def test_shares_that_leave_a_side_empty_are_refused(shares):
    with pytest.raises(UserError, match="split"):
        Sides(**shares)


def test_a_section_is_a_unit_of_its_own_where_asked():
    first, second = passages(2)
    assert Sides().unit_of(first) == Sides().unit_of(second) == "a.md"
    assert Sides(unit="section").unit_of(first) == "a.md > Title > Section 0"


def test_a_trained_passage_is_asked_for_more_questions_than_one_held_out():
    train, test = Passage("one", "a.md"), Passage("two", "b.md")
    wanted = Sides().wanted([train, test], {"a.md": "train", "b.md": "test"}, questions=QUESTIONS, kinds=KINDS)
    assert [len(each.kinds) for each in wanted] == [3, 1]
    assert set(wanted[0].kinds) == set(KINDS)


def test_single_questions_are_of_mixed_kinds():
    wanted = Sides().wanted(passages(60), {"a.md": "test"}, questions=QUESTIONS, kinds=KINDS)
    kinds = [each.kinds[0] for each in wanted]
    assert all(kinds.count(kind) >= 8 for kind in KINDS)  # 20 each, three standard deviations of 3.7 to below


def test_a_side_that_is_asked_nothing_is_left_out():
    assert Sides().wanted(passages(2), {"a.md": "dev"}, questions=QUESTIONS | {"dev": 0}, kinds=KINDS) == []


def test_a_seen_question_leaves_its_passage_others_to_train_on():
    own = passages(40)
    asked = [question(passage, f"{ask} {passage.text}?") for passage in own for ask in ("what is", "where is")]
    dealt = Sides(seen=0.5).deal(asked, {passage.id: passage for passage in own}, {"a.md": "train"})
    assert 10 <= len(dealt["seen"]) <= 30
    assert {each.passage for each in dealt["seen"]} <= {each.passage for each in dealt["train"]}
    assert len(dealt["seen"]) + len(dealt["train"]) == 80


def test_the_only_question_of_a_passage_stays_in_train():
    (passage,) = passages(1)
    dealt = Sides(seen=0.99).deal([question(passage, "what?")], {passage.id: passage}, {"a.md": "train"})
    assert (len(dealt["train"]), dealt["seen"]) == (1, [])


def test_near_copies_stay_on_one_side_only():
    left, right = Passage("one", "a.md"), Passage("two", "b.md")
    dealt = {
        "train": [question(left, "How do I reset my password?"), question(left, "Where is the office?")],
        "dev": [question(right, "how do I reset my password")],
        "unseen": [question(right, "Where is the office??"), question(right, "Who pays for lunch?")],
        "seen": [],
    }
    kept, rejected = Sides().without_copies(dealt, {"r1": "Where is the office"}, {})
    assert [each.text for each in kept["train"]] == ["How do I reset my password?"]  # the real one stays
    assert kept["dev"] == []
    assert [each.text for each in kept["unseen"]] == ["Who pays for lunch?"]
    assert sorted(each.stage for each in rejected) == [
        "near a real question",
        "near a real question",
        "near a training question",
    ]


def test_dev_and_test_lose_what_is_near_a_training_question_of_before_and_train_keeps_it():
    left, right = Passage("one", "a.md"), Passage("two", "b.md")
    dealt = {
        "train": [question(left, "How do I reset my password?")],
        "dev": [question(right, "Where is the office?")],
        "unseen": [question(right, "where is the office"), question(right, "Who pays for lunch?")],
        "seen": [question(left, "Where is the office!"), question(left, "Is there a garden?")],
    }
    learnt = {"l1": "Where is the office", "l2": "how do I reset my password"}
    kept, rejected = Sides().without_copies(dealt, {}, learnt)
    assert {side: [each.text for each in questions] for side, questions in kept.items()} == {
        "train": ["How do I reset my password?"], "dev": [], "unseen": ["Who pays for lunch?"],
        "seen": ["Is there a garden?"],
    }  # fmt: skip
    assert {each.stage for each in rejected} == {"near a training question"}


def test_dev_loses_what_test_asks_too():
    left, right = Passage("one", "a.md"), Passage("two", "b.md")
    dealt = {"train": [], "dev": [question(left, "Who pays?")], "unseen": [question(right, "who pays")], "seen": []}
    kept, (rejected,) = Sides().without_copies(dealt, {}, {})
    assert (kept["dev"], len(kept["unseen"]), rejected.stage) == ([], 1, "near a test question")


@pytest.mark.parametrize(("in_test", "said"), [(19, True), (20, False), (0, False)])
def test_a_test_side_that_gives_no_verdict_is_said_before_anything_is_asked(in_test, said):
    known = SimpleNamespace(passages=[], counts={}, unreadable=[])
    sides = {**{f"t{i}": "test" for i in range(in_test)}, "a": "train", "b": "dev"}
    assert ("a verdict, which needs 20 in test" in summary.of_knowledge(known, sides, [])) is said
