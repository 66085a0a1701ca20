from collections import Counter
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from embexp.cache import kept_in
from embexp.data.retrieval_set import RetrievalSet
from embexp.data.splits import unified
from embexp.errors import UserError
from embexp.rows import negatives
from embexp.rows.negatives import Drawn, draw_bm25, draw_both, draw_hard, draw_random, second_look
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


# --- found by a model or by keywords ----------------------------------------------------------------------------------


class Fixed:
    """An encoder whose query q is nearest to the passages in a known order: cosines 0.9, 0.85, 0.8, 0.6, 0.3."""

    identity, device = None, "cpu"
    COSINES: ClassVar = {"answer": 0.9, "almost": 0.85, "edge": 0.8, "near": 0.6, "far": 0.3, "weak answer": 0.5}

    def queries(self, texts):
        return np.tile(np.array([1, 0], dtype=np.float32), (len(texts), 1))

    def passages(self, texts):
        cosines = np.array([self.COSINES[text] for text in texts], dtype=np.float32)
        return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)


def passages(*texts, relevant=("answer",), judged=()):
    corpus = {text.replace(" ", "-"): text for text in texts}
    grades = dict.fromkeys(relevant, 1) | dict.fromkeys(judged, 0)
    return RetrievalSet({"q": "question"}, corpus, {"q": {key.replace(" ", "-"): g for key, g in grades.items()}}, {})


def hard(data, **options):
    options = {"per_query": 1, "rank_range": [1, 10], "seed": 0, "encoder": Fixed()} | options
    return draw_hard(data, **options)


FIVE = passages("answer", "almost", "edge", "near", "far")


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ({}, "almost"),  # no margin
        ({"absolute_margin": 0.0}, "almost"),
        ({"absolute_margin": 0.06}, "edge"),  # at most 0.84
        ({"absolute_margin": 0.2}, "near"),  # at most 0.7
        ({"relative_margin": 0.05}, "almost"),  # at most 0.855
        ({"relative_margin": 0.1}, "edge"),  # at most 0.81
        ({"relative_margin": 0.2}, "near"),  # at most 0.72
        ({"relative_margin": 0.05, "absolute_margin": 0.5}, "far"),  # the stricter holds: at most 0.4
    ],
)
def test_a_hard_negative_is_the_nearest_that_stays_the_margins_below_the_positive(margins, expected):
    assert hard(FIVE, **margins)["q"] == [expected]


def test_of_several_positives_the_lowest_scored_sets_the_margin():
    data = passages("answer", "weak answer", "almost", "near", "far", relevant=("answer", "weak answer"))
    assert hard(data)["q"] == ["almost"]
    assert hard(data, relative_margin=0.0)["q"] == ["far"]  # at most 0.5


def test_ranks_are_counted_without_known_positives():
    assert hard(FIVE, rank_range=[1, 2], per_query=2)["q"] == ["almost", "edge"]
    assert hard(FIVE, rank_range=[2, 3], per_query=2)["q"] == ["edge", "near"]


@pytest.mark.parametrize("arm", ["Dense", "BM25"])
def test_no_more_ranks_are_looked_at_than_asked_however_many_positives_one_query_has(monkeypatch, arm):
    copies = {f"copy{number}": "answer" for number in range(50)}
    data = replace(FIVE, queries={"q": "answer almost edge near", "r": "far answer"}, corpus={**FIVE.corpus, **copies})
    data = replace(data, qrels={"q": {"answer": 1}, "r": {"far": 1}})
    tops = []
    search = getattr(negatives, arm).search

    def watched(self, retrieval_set, *, top, **options):
        tops.append(top)
        return search(self, retrieval_set, top=top, **options)

    monkeypatch.setattr(f"embexp.rows.negatives.{arm}.search", watched)
    if arm == "Dense":
        drawn = hard(data, rank_range=[1, 3], per_query=3)
        assert drawn["q"] == ["almost", "edge", "near"]
        assert drawn["r"] == ["answer", "copy0", "copy1"]
    else:
        drawn = draw_bm25(data, rank_range=[1, 3], per_query=3, seed=0)
        assert set(drawn["q"]) == {"almost", "edge", "near"}
        assert drawn["r"] == ["answer", "copy0", "copy1"]
    assert (tops, drawn.filled_at_random) == ([3], 0)


def test_where_too_few_pass_the_rest_is_drawn_at_random_and_counted():
    drawn = hard(FIVE, per_query=3, relative_margin=0.2)  # only near and far pass
    assert drawn["q"][:2] == ["near", "far"]
    assert drawn["q"][2] in ("almost", "edge")
    assert drawn.filled_at_random == 1
    assert hard(FIVE, per_query=2, relative_margin=0.2).filled_at_random == 0


def test_a_judged_negative_leads_the_hard_ones_too():
    assert hard(passages("answer", "almost", "far", judged=("far",)), per_query=2)["q"] == ["far", "almost"]


def test_a_passage_with_a_positives_text_is_no_hard_negative_even_if_no_one_judged_it():
    data = replace(FIVE, corpus={**FIVE.corpus, "copy": "answer"})
    assert hard(data, per_query=4)["q"] == ["almost", "edge", "near", "far"]
    assert "copy" not in draw_random(data, per_query=4, seed=0)["q"]


def test_a_rescorers_scores_decide_the_margins_and_the_models_order_stays(monkeypatch):
    scores = {"answer": 0.9, "almost": 0.95, "edge": 0.2, "near": 0.5, "far": 0.1}
    monkeypatch.setattr(negatives, "CrossEncoderScores", lambda path, setting: Scores(scores))
    drawn = hard(FIVE, per_query=2, relative_margin=0.1, rescorer="judge")
    assert drawn["q"] == ["edge", "near"]  # almost is above 0.81


class Scores:
    identity = "scores"

    def __init__(self, scores):
        self._scores = scores

    def __call__(self, queries, passages):
        return np.array([self._scores[text] for text in passages], dtype=np.float32)


def test_the_second_look_counts_negatives_that_score_at_least_as_the_positive():
    data = passages("weak answer", "almost", "edge", "far", relevant=("weak answer",))
    drawn = Drawn({"q": ["almost", "edge", "far"]}, "random")
    look = second_look(drawn, data, encoder=Fixed(), seed=0)
    assert look["second_look"] == "model"
    assert (look["drawn"], look["looked_at"]) == (3, 3)
    assert look["doubtful"] == pytest.approx(2 / 3)  # 0.85 and 0.8 against 0.5
    judged = passages("weak answer", "almost", "edge", "far", relevant=("weak answer",), judged=("almost",))
    assert second_look(drawn, judged, encoder=Fixed(), seed=0)["doubtful"] == pytest.approx(1 / 2)


class Twins(Fixed):
    """Passages that the model can't tell from the answer, though their texts differ."""

    COSINES: ClassVar = {"answer": 0.9, "Answer": 0.9, "ANSWER": 0.9, "far": 0.3}


@pytest.mark.parametrize(("margin", "expected"), [(0.0, ["ANSWER", "Answer", "far"]), (1e-6, ["far"])])
def test_a_passage_that_scores_just_as_the_positive_is_within_a_margin_of_zero_alone(margin, expected):
    data = passages("Answer", "far", "answer", "ANSWER")
    drawn = hard(data, per_query=len(expected), absolute_margin=margin, encoder=Twins())
    assert drawn["q"] == expected


def test_the_positives_score_counts_where_it_is_far_below_the_ranks_looked_at():
    data = passages("weak answer", "almost", "edge", "near", "far", relevant=("weak answer",))
    drawn = hard(data, rank_range=[1, 4], relative_margin=0.1)
    assert drawn["q"] == ["far"]  # at most 0.45
    drawn = hard(data, rank_range=[1, 1], relative_margin=0.1)
    assert drawn.filled_at_random == 1


def test_without_its_positive_in_the_corpus_a_query_has_no_margin():
    drawn = hard(passages("almost", "far", relevant=("elsewhere",)), absolute_margin=0.5, relative_margin=0.5)
    assert drawn["q"] == ["almost"]


def test_what_the_model_found_is_looked_at_by_keywords():
    data = RetrievalSet(
        {"q": "red apple"}, {"a": "a red apple", "b": "one red apple", "c": "green pear"}, {"q": {"a": 1}}, {}
    )
    look = second_look(Drawn({"q": ["b", "c"]}, "model"), data, encoder=Fixed(), seed=0)
    assert look["second_look"] == "bm25"
    assert look["doubtful"] == pytest.approx(1 / 2)  # b has the same words at the same length, c none


def test_a_rescorer_does_not_judge_its_own_choice(monkeypatch):
    scores = {"answer": 0.9, "almost": 0.95, "edge": 0.2, "near": 0.5, "far": 0.1}
    monkeypatch.setattr(negatives, "CrossEncoderScores", lambda path, setting: Scores(scores))
    data = replace(FIVE, queries={"q": "answer edge"})
    drawn = hard(data, per_query=2, relative_margin=0.1, rescorer="judge")
    look = second_look(drawn, data, encoder=Fixed(), seed=0)
    # of edge and near the first has as many of the query's words as the positive; the rescorer would doubt none
    assert (look["second_look"], look["doubtful"]) == ("bm25", pytest.approx(1 / 2))


def test_bm25_negatives_share_the_querys_words_and_the_rest_is_random(toy):
    drawn = draw_bm25(toy, per_query=1, rank_range=[1, 30], seed=0)
    assert drawn.found_by == "bm25"
    data = RetrievalSet(
        {"q": "red apple"},
        {"a": "a red apple", "b": "the red chair", "c": "green pear", "d": "red red wine"},
        {"q": {"a": 1}},
        {},
    )
    assert set(draw_bm25(data, per_query=2, rank_range=[1, 30], seed=0)["q"]) == {"b", "d"}
    drawn = draw_bm25(data, per_query=3, rank_range=[1, 30], seed=0)
    assert drawn["q"][2] == "c"
    assert drawn.filled_at_random == 1


def test_both_draws_in_turn_from_keywords_and_from_the_model_without_a_margin():
    # by words edge and near are found, by the model all but the answer: almost, edge, near and far
    data = replace(FIVE, queries={"q": "answer edge near"})
    draws = [draw_both(data, per_query=2, rank_range=[1, 10], seed=seed, encoder=Fixed())["q"] for seed in range(40)]
    assert {keyword for keyword, _ in draws} == {"edge", "near"}
    assert {near for _, near in draws} == {"almost", "edge", "near", "far"}
    assert all(len(set(chosen)) == 2 for chosen in draws)
    drawn = draw_both(data, per_query=4, rank_range=[1, 10], seed=0, encoder=Fixed())
    assert set(drawn["q"]) == {"almost", "edge", "near", "far"}
    assert (drawn.found_by, drawn.filled_at_random) == ("both", 0)
    assert draw_both(data, per_query=1, rank_range=[2, 2], seed=0, encoder=Fixed())["q"] in (["edge"], ["near"])
    assert second_look(drawn, data, encoder=Fixed(), seed=0)["doubtful"] is None  # both had a say


def test_found_negatives_are_kept_between_runs_by_content(toy, tmp_path, monkeypatch):
    options = {"per_query": 2, "rank_range": [1, 30], "seed": 0}
    with kept_in(tmp_path):
        first = draw_bm25(toy, **options)
        monkeypatch.setattr(negatives, "BM25", None)  # asked again it would fail
        assert draw_bm25(toy, **options) == first
        with pytest.raises(TypeError):
            draw_bm25(toy, **options | {"seed": 1})


def test_a_second_look_is_kept_by_the_judge_the_data_and_what_was_drawn(toy, tmp_path, monkeypatch):
    found = Drawn({query: ["p0", "p1"] for query in toy.queries if query[1] not in "01"}, "model")
    other = Drawn({**found, "q3.0": ["p0", "p2"]}, "model")
    with kept_in(tmp_path):
        first = second_look(found, toy, encoder=Fixed(), seed=0)
        monkeypatch.setattr(negatives, "Keywords", None)  # asked again it would fail
        assert second_look(found, toy, encoder=Fixed(), seed=0) == first
        for drawn, data in ((other, toy), (found, replace(toy, corpus={**toy.corpus, "p5": "another text"}))):
            with pytest.raises(TypeError):
                second_look(drawn, data, encoder=Fixed(), seed=0)


def test_a_model_in_training_has_its_second_look_each_time(tmp_path):
    data = passages("weak answer", "almost", "edge", "far", relevant=("weak answer",))
    named = Fixed()
    named.identity = {"content": "a model's"}
    with kept_in(tmp_path):
        for encoder, kept in ((Fixed(), 0), (named, 1)):
            second_look(Drawn({"q": ["almost", "far"]}, "random"), data, encoder=encoder, seed=0)
            assert len(list(tmp_path.glob("second_look/*.lock"))) == kept


@pytest.mark.parametrize("ranks", [[0, 5], [5, 1], [1]])
def test_a_rank_range_that_is_none_is_refused(ranks):
    with pytest.raises(UserError, match="it must be \\[first, last\\]"):
        hard(FIVE, rank_range=ranks)


def test_a_margin_outside_zero_to_one_is_refused():
    with pytest.raises(UserError, match="relative_margin=5; it must be from 0 to 1"):
        hard(FIVE, relative_margin=5)
