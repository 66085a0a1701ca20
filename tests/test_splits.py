import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import sha256
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given as for_all, settings, strategies as st
from sklearn.feature_extraction.text import HashingVectorizer

from embexp.data import copies
from embexp.data.copies import near_duplicates
from embexp.data.leaks import refuse_leaks
from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.data.splits import Shares, cut, cut_dev, given, limited, trainable, unified
from embexp.errors import UserError
from embexp.rows.negatives import draw_random
from embexp.rows.shapes import to_rows
from tests.conftest import toy_set

WHALE = "what is the colour of the back of the great blue whale in the southern ocean"
TEXTS = st.lists(st.text("abc ?", max_size=12), min_size=1, max_size=8)
DROPPED = "queries dropped as near copies of test or dev"


def set_of(questions, texts=None):
    """Documents d0, d1, ... of one passage, with as many questions as said; no two are alike but for `texts`."""
    ids = [f"q{d}.{i}" for d, count in enumerate(questions) for i in range(count)]
    queries = {query: sha256(query.encode()).hexdigest() for query in ids} | (texts or {})
    passages = range(len(questions))
    qrels = {query: {f"p{query[1:].split('.')[0]}": 1} for query in ids}
    return RetrievalSet(
        queries, {f"p{d}": f"passage {d}" for d in passages}, qrels, {f"p{d}": f"d{d}" for d in passages}
    )


def sides(splits):
    return splits.train, splits.dev, splits.test


def sizes(splits):
    return [len(side.queries) for side in sides(splits)]


def documents(side, queries=None):
    return {document for query in queries or side.queries for document in side.documents_of(query)}


def test_ten_documents_are_cut_seven_one_two_and_the_corpus_stays_whole():
    splits = cut(set_of([2] * 10), Shares(test=0.2, dev=0.1))
    assert [len(documents(side)) for side in sides(splits)] == [7, 1, 2]
    assert len(set.union(*map(documents, sides(splits)))) == 10  # so that no document is on two sides
    assert [len(side.corpus) for side in sides(splits)] == [10, 10, 10]
    assert {name: len(queries) for name, queries in splits.slices.items()} == {"unseen": 4}


def test_the_cut_depends_on_its_seed_alone():
    assert cut(set_of([2] * 10), Shares(seed=3)) == cut(set_of([2] * 10), Shares(seed=3))
    assert cut(set_of([2] * 10), Shares(seed=3)) != cut(set_of([2] * 10), Shares(seed=4))


def test_seen_questions_are_new_ones_on_documents_that_stay_in_train():
    splits = cut(set_of([2] * 10), Shares(test=0.2, dev=0.1, seen=0.3))
    assert {name: len(queries) for name, queries in splits.slices.items()} == {"seen": 6, "unseen": 4}
    assert documents(splits.test, splits.slices["seen"]) <= documents(splits.train)
    assert not documents(splits.test, splits.slices["unseen"]) & documents(splits.train)
    assert list(cut(set_of([1] * 10), Shares(seen=0.2)).slices) == ["unseen"]  # one question per document


@settings(deadline=None, max_examples=60, derandomize=True)
@for_all(
    questions=st.lists(st.integers(1, 6), min_size=4, max_size=8),
    copies=st.dictionaries(st.integers(0, 7), st.sampled_from(["", "?", " now", ", please"]), min_size=2, max_size=3),
    seed=st.integers(0, 99),
)
def test_planted_copies_never_stand_on_two_sides_of_a_cut(questions, copies, seed):
    planted = {f"q{document % len(questions)}.0": WHALE + change for document, change in copies.items()}
    try:
        splits = cut(set_of([count + 1 for count in questions], planted), Shares(seen=0.1, seed=seed))
    except UserError as error:
        assert "too little to split" in str(error)  # noqa: PT017
        return
    assert sum(any("whale" in text for text in side.queries.values()) for side in sides(splits)) == 1
    assert all(side.queries for side in sides(splits))
    assert not documents(splits.test, splits.slices["unseen"]) & documents(splits.train)
    refuse_leaks(replace(splits, parted=None), near_duplicate=0.9)  # looked through anew


def test_near_copies_are_dropped_from_train_and_dev_and_counted():
    splits = cut(set_of([2] * 10, {f"q{d}.0": WHALE + " ," * d for d in range(10)}), Shares())
    assert sizes(splits) == [7, 1, 4]
    assert splits.notes[DROPPED] == 8  # seven of train and one of dev; the two in test stay


@pytest.mark.parametrize("joined_by", ["copied passage", "query with two documents"])
def test_joined_documents_stay_on_one_side(joined_by):
    data = set_of([1] * 8)
    if joined_by == "copied passage":
        data = replace(data, corpus={**data.corpus, "p1": data.corpus["p0"]})
    else:
        data = replace(data, qrels={**data.qrels, "q0.0": {"p0": 1, "p1": 2}})
    for seed in range(8):
        splits = cut(data, Shares(test=0.4, dev=0.3, seed=seed))
        assert sorted(len({"q0.0", "q1.0"} & side.queries.keys()) for side in sides(splits)) == [0, 0, 2]


@pytest.mark.parametrize("shares", [Shares(), Shares(test=0.05, dev=0.9), Shares(test=0.9, dev=0.05)])
@pytest.mark.parametrize("questions", [[90, 5, 5], [1, 1, 1], [30, 31, 32]])
def test_with_three_documents_every_side_has_one(questions, shares):
    assert sorted(sizes(cut(set_of(questions), shares))) == sorted(questions)


def test_the_document_with_most_questions_trains():
    assert [sizes(cut(set_of([14, 1, 1]), Shares(seed=seed))) for seed in range(4)] == [[14, 1, 1]] * 4


def test_unified_joins_equal_questions_at_the_higher_grade_and_judges_copies_alike():
    queries = {"q1": "What is C?", "q2": "what is  c", "q3": "What is C++?"}
    qrels = {"q1": {"a": 1, "b": 0}, "q2": {"b": 2, "a": 0}, "q3": {"b": 1, "a": 0}}
    joined = unified(RetrievalSet(queries, {"a": "A language", "b": "Another", "copy": "A language "}, qrels, {}))
    assert list(joined.queries) == ["q1", "q3"]
    assert joined.qrels == {"q1": {"a": 1, "b": 2, "copy": 1}, "q3": {"b": 1, "a": 0, "copy": 0}}


def test_near_duplicates_are_found_without_case_and_punctuation_and_in_any_order_of_words():
    right = {"same": f"{WHALE.upper()}!", "swapped": "bites man, dog", "other": "where do whales sleep"}
    assert list(near_duplicates({"a": WHALE, "b": "dog bites man"}, right, threshold=1.0)) == [
        ("a", "same"),
        ("b", "swapped"),
    ]
    assert list(near_duplicates({"a": WHALE}, {"near": f"{WHALE} now"}, threshold=1.0)) == []
    assert list(near_duplicates({"a": WHALE}, {"near": f"{WHALE} now"}, threshold=0.9)) == [("a", "near")]
    assert list(near_duplicates({}, right, threshold=0.9)) == []


@settings(max_examples=25, deadline=None)
@for_all(TEXTS, TEXTS, st.sampled_from([0.3, 0.6, 0.9, 1.0]))
def test_near_duplicates_leave_out_no_pair_that_comparing_every_text_whole_finds(left, right, threshold):
    texts = [re.sub(r"[^\w]+", " ", text).strip() or text.strip() or " " for text in [*left, *right]]
    vectors = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), alternate_sign=False).transform(texts)
    cosines = (vectors @ vectors.T).toarray()[: len(left), len(left) :]
    expected = list(zip(*(axis.tolist() for axis in np.nonzero(cosines >= threshold - 1e-6)), strict=True))
    assert list(near_duplicates(dict(enumerate(left)), dict(enumerate(right)), threshold=threshold)) == expected


@pytest.mark.parametrize(("left", "right"), [(0, 2), (1, 2), (0, 1)])
def test_given_splits_with_a_leak_are_refused_with_both_ids(left, right):
    leaking = [set_of([2] * 6).with_queries([f"q{side}.0", f"q{side}.1"]) for side in range(3)]
    for side, text in ((left, WHALE), (right, f"{WHALE} now?")):
        leaking[side] = replace(leaking[side], queries={**leaking[side].queries, f"q{side}.1": text})
    names = ("train", "dev", "test")
    with pytest.raises(UserError) as error:
        refuse_leaks(given(*leaking), near_duplicate=0.9)
    assert f"in {names[left]} and in {names[right]}: q{left}.1 = q{right}.1 (" in str(error.value)
    assert len(error.value.problems) == 1


def test_a_cut_is_looked_through_again_once_a_side_of_it_or_the_threshold_has_changed():
    splits = cut(set_of([2] * 10, {"q0.0": WHALE, "q1.0": f"{WHALE} now", "q2.0": "of whales"}), Shares())
    assert splits.parted_at(0.9)
    assert splits.parted_at(0.95)
    assert not splits.parted_at(0.5)
    planted = {query: WHALE for side in (splits.train, splits.test) for query in list(side.queries)[:1]}
    train, test = (
        replace(side, queries=side.queries | {query: WHALE for query in planted if query in side.queries})
        for side in (splits.train, splits.test)
    )
    with pytest.raises(UserError, match="leak: 1 query stands, exactly or nearly, in train and in test"):
        refuse_leaks(replace(splits, train=train, test=test), near_duplicate=0.9)


@pytest.mark.parametrize(("said", "count"), [("3", 3), ("12", 12), ("", 8), ("0", 8), ("2,1", 8)])
def test_near_copies_are_sought_with_as_many_threads_as_the_run_may_use(monkeypatch, said, count):
    pools = []
    monkeypatch.setattr(copies, "ThreadPoolExecutor", lambda count: pools.append(count) or ThreadPoolExecutor(1))
    monkeypatch.setattr("embexp.parallel.machine.cores", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert list(near_duplicates({"a": "blue whale"}, {"b": "Blue whale!"}, threshold=0.9)) == [("a", "b")]
    monkeypatch.setattr("embexp.parallel.machine.cores", lambda: 2)
    list(near_duplicates({"a": "blue whale"}, {"b": "Blue whale!"}, threshold=0.9))
    assert pools == [count, count if count in (3, 12) else 2]


WORDS = st.lists(
    st.sampled_from(["whale", "whales", "blue", "blues", "the", "of", "ocean", "oceans", "a", "colour"]), max_size=9
)


@settings(max_examples=40, deadline=None)
@for_all(st.lists(WORDS, min_size=1, max_size=60), st.sampled_from([0.5, 0.8, 0.9, 1.0]), st.integers(1, 3))
def test_near_duplicates_are_the_same_however_the_texts_are_parted(lists, threshold, at_once):
    texts = [" ".join(words) or "?" for words in lists]
    vectors = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), alternate_sign=False).transform(texts)
    cosines = (vectors @ vectors.T).toarray()
    named = dict(enumerate(texts))
    with patch.multiple(copies, LEFT_AT_ONCE=at_once, RIGHT_AT_ONCE=at_once + 1, BANDS=2.0 ** np.arange(31)):
        found = list(near_duplicates(named, named, threshold=threshold))
    assert found == list(zip(*(axis.tolist() for axis in np.nonzero(cosines >= threshold - 1e-6)), strict=True))


@settings(max_examples=60, deadline=None)
@for_all(st.data())
def test_unified_is_what_comparing_every_two_texts_gives(data):
    texts = st.sampled_from(["a", "a ", "b", "B", "b?", "c"])
    queries = dict(enumerate(data.draw(st.lists(texts, min_size=1, max_size=6))))
    corpus = {f"p{place}": text for place, text in enumerate(data.draw(st.lists(texts, min_size=1, max_size=6)))}
    grades = st.dictionaries(st.sampled_from(sorted(corpus)), st.integers(0, 2), min_size=1)
    qrels = {query: data.draw(grades) for query in queries}
    joined = unified(RetrievalSet(queries, corpus, qrels, {}))
    plain = {query: text.lower().strip(" ?") for query, text in queries.items()}
    firsts = [query for query in queries if query == min(other for other in queries if plain[other] == plain[query])]
    expected = {}
    for first in firsts:
        judged = [(p, g) for query in queries if plain[query] == plain[first] for p, g in qrels[query].items()]
        alike = [(copy, g) for p, g in judged for copy in corpus if corpus[copy].strip() == corpus[p].strip()]
        expected[first] = {p: max(g for copy, g in alike if copy == p) for p, _ in alike}
    assert list(joined.queries) == firsts
    assert joined.qrels == expected


def test_an_unseen_question_on_a_trained_document_is_refused_and_a_seen_one_is_not():
    data = set_of([2] * 3)
    train, dev, test = (data.with_queries(queries) for queries in (["q0.0", "q1.0"], ["q2.0"], ["q0.1", "q1.1"]))
    assert given(train, dev, test).slices == {"seen": ("q0.1", "q1.1")}
    refuse_leaks(given(train, dev, test), near_duplicate=0.9)
    with pytest.raises(UserError, match=r"1 test query called unseen, on documents that training saw: q1.1"):
        refuse_leaks(Splits(train, dev, test, {"seen": ("q0.1",), "unseen": ("q1.1",)}), near_duplicate=0.9)


def test_given_splits_and_a_cut_refuse_qrels_of_unknown_queries():
    broken = replace(set_of([1] * 6), qrels={**set_of([1] * 6).qrels, "nobody": {"p0": 1}})
    for make in (lambda: cut(broken, Shares()), lambda: given(set_of([1]), set_of([1]), broken)):
        with pytest.raises(UserError, match="1 qrels name queries that do not exist: nobody"):
            make()


def test_dev_is_taken_out_of_train_by_document_without_near_copies():
    train = set_of([2] * 10, {f"q{d}.0": WHALE + " ," * d for d in range(9)})
    test = RetrievalSet({"t": "another question"}, train.corpus, {"t": {"p9": 1}}, train.documents)
    splits = cut_dev(train, test, Shares(dev=0.2, seed=1))
    assert not documents(splits.dev) & documents(splits.train)
    assert len(splits.dev.queries) == 4
    assert splits.notes[DROPPED] == 16 - len(splits.train.queries) > 0
    refuse_leaks(splits, near_duplicate=0.9)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (set_of([3]), "train has one independent document"),
        (set_of([1, 1, 1], {f"q{d}.0": WHALE + " ," * d for d in range(3)}), "every train query is a near copy"),
    ],
)
def test_a_dev_that_would_take_all_of_train_is_refused(data, message):
    with pytest.raises(UserError, match=f"too little to split: {message}"):
        cut_dev(data, set_of([1]), Shares())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: cut(set_of([3, 3]), Shares()),
            "too little to split: 6 queries on 2 independent documents; train, dev",
        ),
        (
            lambda: cut(set_of([1] * 5, {f"q{d}.0": WHALE + " ," * d for d in range(5)}), Shares()),
            "near copies of test queries left train with 0 and dev with 0 queries. Raise dataset.split.near_duplicate",
        ),
        (lambda: Shares(test=0), "test and dev must be above 0, each below 1 and their sum with seen below 1"),
        (lambda: Shares(seen=-0.1), "split shares are {'test': 0.2, 'dev': 0.1, 'seen': -0.1}"),
        (lambda: Shares(test=0.5, dev=0.3, seen=0.2), "their sum with seen below 1"),
        (lambda: Shares(near_duplicate=1.5), "near_duplicate is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_what_cannot_be_cut_says_why(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)


def test_a_limited_copy_has_twice_the_passages_that_its_queries_need():
    splits = limited(cut(set_of([4] * 10), Shares(seen=0.1)), 2)
    assert sizes(splits) == [2, 2, 2]
    needed = {passage for side in sides(splits) for query in side.queries for passage in side.relevant(query)}
    assert needed <= splits.test.corpus.keys()
    assert len(splits.test.corpus) == min(10, 2 * len(needed))


def test_training_rows_show_no_passage_of_a_document_held_out_whole():
    splits = cut(toy_set(10, 4), Shares(test=0.2, dev=0.2, seen=0.1, near_duplicate=1.0))
    held_out = {d for q in splits.slices["unseen"] for d in splits.test.documents_of(q)}
    held_out |= {d for q in splits.dev.queries for d in splits.dev.documents_of(q)}
    rows = to_rows(trainable(splits), "triplet", negatives=partial(draw_random, per_query=3), seed=0)
    shown = {splits.train.documents[passage] for passages in rows.passage_ids for passage in passages}
    assert held_out
    assert not shown & held_out
    assert len(splits.train.corpus) == 10  # what is searched stays whole
