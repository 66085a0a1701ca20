from embexp.mine.passages import Passage, Question
from embexp.mine.written import cloze_texts, queries_of

FIRST = "The desk is open at nine. It closes when the last guest has left the hall."
SECOND = "It closes when the last guest has left the hall. Keys are kept below the desk."


def found(question, passages, **changes):
    given = {"easy": frozenset(), "further": {}, "side_of": {passage.id: "train" for passage in passages}, **changes}
    (query,) = queries_of({"train": [question]}, {passage.id: passage for passage in passages}, **given).values()
    return query


def test_a_neighbour_that_overlaps_with_the_answer_answers_too():
    passages = [Passage(FIRST, "a.md", ("Desk",), 0), Passage(SECOND, "a.md", ("Desk",), 1)]
    question = Question("when does it close?", passages[0].id, "question", "when the last guest has left")
    assert set(found(question, passages).answers) == {passage.id for passage in passages}


def test_a_neighbour_that_only_says_the_same_words_does_not_answer():
    passages = [
        Passage("Orders take two days.", "a.md", ("Desk",), 0),
        Passage("Ice lasts two days.", "a.md", ("Desk",), 1),
    ]
    question = Question("how long do orders take?", passages[0].id, "question", "two days")
    assert set(found(question, passages).answers) == {passages[0].id}


def test_an_answer_on_another_side_is_none():
    passages = [Passage(FIRST, "a.md", given_id="p1"), Passage(SECOND, "b.md", given_id="p2")]
    question = Question("when does it close?", "p1", "question", "when the last guest has left", also=("p2",))
    assert set(found(question, passages).answers) == {"p1", "p2"}
    assert set(found(question, passages, side_of={"p1": "train", "p2": "test"}).answers) == {"p1"}
    assert set(
        found(question, passages, side_of={"p1": "dev", "p2": "test"}, further={question.id: ["p2"]}).answers
    ) == {"p1"}


def test_a_pseudo_query_leaves_its_passage_unless_nothing_would_be_left():
    long, short = Passage(FIRST, "a.md", given_id="p1"), Passage("Keys are kept below the desk.", "b.md", given_id="p2")
    spans = {"p1": "The desk is open at nine.", "p2": short.text}
    asked = [Question(span, key, "sentence", span, cloze=True) for key, span in spans.items()]
    passages = {"p1": long, "p2": short}
    side_of = {"p1": "train", "p2": "train"}
    queries = queries_of({"train": asked}, passages, easy=frozenset(), further={}, side_of=side_of)
    assert cloze_texts(queries, passages) == {"p1": "It closes when the last guest has left the hall."}
