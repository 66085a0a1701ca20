"""Train questions that dev or test asks in other words are left out of train, by hand-made vectors."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from embexp.data import paraphrases
from embexp.data.paraphrases import similar, without_paraphrases
from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.errors import UserError


def at(degrees):
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], dtype=np.float32)


class Angles:
    """An encoder of texts such as "30": the unit vector at that angle."""

    def queries(self, texts):
        return np.stack([at(float(text)) for text in texts])


def side(**queries):
    return RetrievalSet(queries, {"p": "text"}, {query: {"p": 1} for query in queries}, {"p": "d"})


def kept(train, *, dev, test, threshold):
    splits = Splits(train, dev, test, {})
    return list(without_paraphrases(train, splits, Angles(), threshold=threshold).queries)


# with dev and test below their mean is zero, so that taking it off changes no angle
TRAIN = side(near_dev="41", near_test="85", a="217", b="221", c="265", d="270")
FAR = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("threshold", "left"),  # cos 4 degrees = 0.9976, cos 5 degrees = 0.9962
    [(0.95, FAR), (0.997, ["near_test", *FAR]), (1, list(TRAIN.queries)), (None, list(TRAIN.queries))],
)
def test_train_queries_near_a_dev_or_test_query_are_left_out(threshold, left):
    assert kept(TRAIN, dev=side(a="37"), test=side(b="90"), threshold=threshold) == left


def test_the_kept_queries_keep_their_qrels_and_the_corpus():
    train = without_paraphrases(TRAIN, Splits(TRAIN, side(a="37"), side(b="90"), {}), Angles(), threshold=0.95)
    assert (set(train.qrels), train.corpus) == (set(FAR), TRAIN.corpus)


def test_a_cosine_that_equals_the_threshold_counts_as_near():
    opposite = np.stack([at(0), at(180)])  # their mean is zero
    assert similar(opposite, opposite, threshold=1).tolist() == [True, True]


def test_what_a_model_adds_to_every_text_does_not_make_queries_near():
    left, right = (np.array([[10, 1], [10, -1]], np.float32), np.array([[10, 1.0]], np.float32))  # cosines 1 and 0.98
    assert similar(left, right, threshold=0.9).tolist() == [True, False]


@pytest.mark.parametrize("rows", [1, 2, 4, 100])
def test_every_block_of_rows_of_both_sides_is_looked_at(rows, monkeypatch):
    monkeypatch.setattr(paraphrases, "ROWS_AT_ONCE", rows)
    left = np.stack([at(angle) for angle in (90, 270, 90, 270, 1, 181)])
    right = np.stack([at(angle) for angle in (45, 225, 45, 225, 0, 180)])
    assert similar(left, right, threshold=0.9).tolist() == [False, False, False, False, True, True]


def test_memory_does_not_grow_with_the_sides(monkeypatch):
    monkeypatch.setattr(paraphrases, "ROWS_AT_ONCE", 100)
    sides = np.random.default_rng(0).normal(size=(2, 20_000, 32)).astype(np.float32)  # 2.6 MB each
    tracemalloc.start()
    similar(sides[0], sides[1, :5000], threshold=0.95)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000  # a block of 100 x 5,000 cosines is four times that


def test_more_than_half_of_train_is_not_thrown_away_in_silence():
    with pytest.raises(UserError, match=r"paraphrase=0.95: 3 of 4 train queries .* set paraphrase=null"):
        kept(side(a="0", b="1", c="2", d="60"), dev=side(x="0"), test=side(y="0"), threshold=0.95)


def test_half_of_train_may_go():
    assert kept(side(a="0", b="60"), dev=side(x="0"), test=side(y="0"), threshold=0.95) == ["b"]
