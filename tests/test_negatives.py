from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embexp.errors import UserError
from embexp.negatives import draw_random
from embexp.retrieval_set import RetrievalSet
from embexp.splits import unified
from tests.conftest import toy_set


def one_query(passages, **grades):
    corpus = {f"p{number}": f"passage {number}" for number in range(passages)}
    return RetrievalSet({"q": "question"}, corpus, {"q": grades}, {})


def test_every_query_gets_as_many_different_negatives_as_asked(toy):
    drawn = draw_random(toy, per_query=3, seed=0)
    assert list(drawn) == list(toy.queries)
    assert {len(set(negatives)) for negatives in drawn.values()} == {3}


def test_passages_judged_not_relevant_come_first_and_the_rest_is_drawn():
    drawn = draw_random(one_query(9, p0=1, p5=0, p3=-1), per_query=4, seed=0)["q"]
    assert drawn[:2] == ["p3", "p5"]
    assert set(drawn[2:]) <= {"p1", "p2", "p4", "p6", "p7", "p8"}
    assert draw_random(one_query(9, p0=1, p5=0, p3=-1), per_query=1, seed=0)["q"] == ["p3"]


def test_all_that_is_left_is_drawn_when_so_many_are_asked():
    assert sorted(draw_random(one_query(5, p0=1, p1=2, p2=0), per_query=3, seed=0)["q"]) == ["p2", "p3", "p4"]


@settings(deadline=None, max_examples=100)
@given(
    grades=st.dictionaries(st.sampled_from([f"p{n}" for n in range(8)]), st.integers(-1, 2)),
    per_query=st.integers(1, 7),
    seed=st.integers(0, 9),
)
def test_no_known_positive_is_ever_drawn_and_judgements_lead(grades, per_query, seed):
    data = one_query(8, **{"p0": 1, **grades})
    relevant = set(data.relevant("q"))
    judged = {passage for passage, grade in data.qrels["q"].items() if grade <= 0}
    if 8 - len(relevant) < per_query:
        with pytest.raises(UserError, match=f"query q has fewer than {per_query} passages that are not relevant"):
            draw_random(data, per_query=per_query, seed=seed)
        return
    drawn = draw_random(data, per_query=per_query, seed=seed)["q"]
    assert len(set(drawn)) == per_query
    assert not relevant & set(drawn)
    assert set(drawn[: len(judged)]) <= judged


def test_a_copy_of_a_positive_under_another_id_is_never_drawn(toy):
    copies = {f"copy{passage}": f" {text}\n" for passage, text in toy.corpus.items()}
    data = unified(replace(toy, corpus={**toy.corpus, **copies}))
    drawn = draw_random(data, per_query=18, seed=0)  # all 20 but the positive and its copy
    assert not set(drawn["q3.0"]) & {"p3", "copyp3"}
    assert len(set(drawn["q3.0"])) == 18


def test_draws_depend_on_the_seed_alone(toy):
    assert draw_random(toy, per_query=2, seed=1) == draw_random(toy, per_query=2, seed=1)
    assert draw_random(toy, per_query=2, seed=1) != draw_random(toy, per_query=2, seed=2)


def test_draws_are_even_over_the_corpus():
    data = toy_set(documents=4, questions=600)
    counts = Counter(negatives[0] for negatives in draw_random(data, per_query=1, seed=0).values())
    # 2,400 queries draw one of three passages each: 600 per passage, four standard deviations are 85
    assert all(515 < counts[passage] < 685 for passage in data.corpus)


@pytest.mark.parametrize(
    ("per_query", "message"),
    [
        (0, "negatives.per_query=0; it must be at least 1"),
        (
            10,
            "negatives: query q0.0 has fewer than 10 passages that are not relevant, among 10; lower",
        ),
    ],
)
def test_a_number_that_cannot_be_drawn_is_refused(toy, per_query, message):
    with pytest.raises(UserError) as error:
        draw_random(toy, per_query=per_query, seed=0)
    assert str(error.value).startswith(message)
