import json

import pytest

from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.errors import UserError
from embexp.mine import real
from embexp.mine.passages import Passage

PASSAGES = {name: Passage(text, "guide.md", given_id=name) for name, text in {
    "p1": "Reset the password under Settings.", "p2": "The office is in Lyon.", "p3": "Lunch is paid by the firm.",
}.items()}  # fmt: skip


class Judge:
    """Says yes where a passage and a question share this word."""

    def __init__(self, word):
        self.word = word
        self.asked = []

    def answers(self, pairs):
        self.asked += pairs
        return [self.word in question and self.word in passage for question, passage in pairs]


def written(folder, *rows):
    file = folder / "real.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_questions_with_ids_need_no_judge(tmp_path):
    file = written(tmp_path, {"query": "where is it?", "passages": ["p2"]}, {"query": "who pays?", "passages": "p3 p1"})
    found = real.read(file, PASSAGES, judge=None)
    by_text = {text: found.qrels[query] for query, text in found.queries.items()}
    assert by_text == {"where is it?": {"p2": 1}, "who pays?": {"p3": 1, "p1": 1}}
    assert found.left_out == {}


def test_rows_of_one_question_are_joined(tmp_path):
    rows = [{"query": "where?", "passages": ["p2"]}, {"query": "where? ", "passages": ["p3"]}]
    (grades,) = real.read(written(tmp_path, *rows), PASSAGES, judge=None).qrels.values()
    assert grades == {"p2": 1, "p3": 1}


def test_without_ids_the_judge_finds_the_passages_and_the_rest_is_counted(tmp_path):
    rows = [{"query": "is the office in Lyon?"}, {"query": "is the password there?"}]
    judge = Judge("office")
    found = real.read(written(tmp_path, *rows), PASSAGES, judge=judge)
    assert list(found.queries.values()) == ["is the office in Lyon?"]
    assert list(found.qrels.values()) == [{"p2": 1}]
    assert found.left_out == {"real: the judge found no passage": 1}
    assert ("is the office in Lyon?", "The office is in Lyon.") in judge.asked


def test_without_ids_and_without_a_judge_the_error_says_both_ways_out(tmp_path):
    with pytest.raises(UserError, match=r"judge=true.*column passages"):
        real.read(written(tmp_path, {"query": "where?"}), PASSAGES, judge=None)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"query": "where?", "passages": ["p9"]}], "p9 is no passage's id"),
        ([{"query": "where?", "passages": 3}], "must be a list of ids"),
        ([{"question": "where?"}], "needs a column query"),
        ([], "is empty"),
    ],
)
def test_what_can_not_be_read_is_refused_with_what_is_wrong(tmp_path, rows, words):
    with pytest.raises(UserError, match=words):
        real.read(written(tmp_path, *rows), PASSAGES, judge=None)


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="is not a file"):
        real.read("nowhere.jsonl", PASSAGES, judge=None)


def test_a_data_sets_own_questions_are_taken_where_their_passages_are_mined():
    def side(**answers):
        return RetrievalSet(
            {query: f"text of {query}" for query in answers}, {}, {q: {p: 1} for q, p in answers.items()}, {}
        )

    splits = Splits(side(a="p1"), side(b="p2"), side(c="elsewhere"), {})
    found = real.of_data_set(splits, PASSAGES)
    assert dict(found.queries) == {"a": "text of a", "b": "text of b"}
    assert dict(found.qrels) == {"a": {"p1": 1}, "b": {"p2": 1}}
