import math
import random
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from embexp.data.retrieval_set import RetrievalSet
from embexp.rows import batches as batches_module
from embexp.rows.batches import ConflictFreeBatchSampler, MaskedSimilarity, plan
from embexp.rows.conflicts import Conflicts
from embexp.rows.negatives import draw_random
from embexp.rows.shapes import Rows, to_rows
from embexp.training.losses import gist
from tests.tiny import tiny_transformer


def on_passages(*passages):
    """Conflicts of rows that show the passage with this number, which is relevant to their query."""
    return on_triplets(*((passage,) for passage in passages))


def on_triplets(*passages):
    """The same for rows that show a positive and then negatives."""
    shown = [[f"p{passage}" for passage in row] for row in passages]
    return Conflicts.between_ids(shown, [[f"p{positive}"] for positive, *_ in passages])


def sampler_of(conflicts, lengths, *, batch_size, seed=0, epochs=1):
    rows = Rows({}, [f"q{row}" for row in range(len(lengths))], [()] * len(lengths))
    return ConflictFreeBatchSampler(rows, conflicts, lengths, batch_size=batch_size, seed=seed, epochs=epochs)


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def conflicting(batch, conflicts):
    """The rows of a batch that conflict with another, by comparing every two."""
    return {a for a in batch for b in batch if a != b and conflicts.between(a, b)}


@st.composite
def data_sets(draw):
    """Up to 24 rows; each shows its positive and one negative, of few passages or many."""
    passages = st.integers(0, draw(st.sampled_from([0, 2, 8, 40])))
    rows = draw(st.lists(st.tuples(passages, passages, st.integers(1, 60)), min_size=1, max_size=24))
    return on_triplets(*(row[:2] for row in rows)), [length for _, _, length in rows]


@settings(deadline=None, max_examples=150)
@given(data=data_sets(), batch_size=st.integers(2, 6), seed=st.integers(0, 99))
def test_each_epoch_uses_every_row_once_in_as_many_batches_never_of_one_row(data, batch_size, seed):
    conflicts, lengths = data
    sampler = sampler_of(conflicts, lengths, batch_size=batch_size, seed=seed, epochs=4)
    for epoch in range(4):
        batches = epoch_of(sampler, epoch)
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert len(batches) == len(sampler)
        assert len(lengths) == 1 or min(map(len, batches)) > 1
        assert max(map(len, batches)) <= batch_size + 1


@settings(deadline=None, max_examples=150)
@given(data=data_sets(), batch_size=st.integers(2, 6), seed=st.integers(0, 99))
def test_rows_that_share_a_batch_with_a_conflict_are_counted(data, batch_size, seed):
    conflicts, lengths = data
    sampler = sampler_of(conflicts, lengths, batch_size=batch_size, seed=seed, epochs=3)
    counts = [sum(len(conflicting(batch, conflicts)) for batch in epoch_of(sampler, epoch)) for epoch in range(3)]
    assert sampler.masked_rows == max(counts)


def test_rows_that_can_be_kept_apart_are():
    conflicts = on_passages(*[row // 3 for row in range(300)])  # three questions on each of 100 passages
    sampler = sampler_of(conflicts, [10] * 300, batch_size=20, epochs=3)
    assert sampler.masked_rows == 0
    assert not any(conflicting(batch, conflicts) for epoch in range(3) for batch in epoch_of(sampler, epoch))


def test_a_row_left_alone_is_given_one_that_it_has_no_conflict_with():
    # by length 0 2 3 fill a batch and leave 1 alone, which asks about the passage of 0
    sampler = sampler_of(on_passages(0, 0, 1, 2), [10, 20, 40, 80], batch_size=3)
    assert sorted(map(sorted, sampler)) == [[0, 3], [1, 2]]
    assert sampler.masked_rows == 0


def test_four_questions_on_one_passage_share_batches_and_all_four_are_counted():
    sampler = sampler_of(on_passages(0, 0, 0, 0), [5] * 4, batch_size=4)
    assert [len(batch) for batch in sampler] == [2, 2]
    assert sampler.masked_rows == 4


def test_an_epoch_that_needs_fewer_batches_is_cut_up_without_new_conflicts():
    conflicts, lengths = on_passages(0, 0, 1, 1, 2, 3), [11, 10, 12, 10, 10, 11]
    needed = {len(plan(lengths, conflicts, batch_size=3, seed=0, epoch=epoch)) for epoch in range(8)}
    assert needed == {2, 3}  # in some epochs two batches of three rows do
    sampler = sampler_of(conflicts, lengths, batch_size=3, epochs=8)
    assert [[len(batch) for batch in epoch_of(sampler, epoch)] for epoch in range(8)] == [[2, 2, 2]] * 8
    assert sampler.masked_rows == 0


def test_conflicts_are_counted_in_the_epoch_that_has_the_most():
    conflicts = on_triplets((2, 0), (1, 2), (0, 2), (3, 4))  # 0 conflicts with 1 and 2, so only 3 can join it
    sampler = sampler_of(conflicts, [11, 11, 11, 10], batch_size=2, epochs=4, seed=6)
    assert not any(conflicting(batch, conflicts) for batch in epoch_of(sampler, 0))
    assert any(conflicting(batch, conflicts) for epoch in range(1, 4) for batch in epoch_of(sampler, epoch))
    assert sampler.masked_rows == 2


def test_the_order_depends_on_seed_and_epoch_alone():
    batches = partial(plan, list(range(1, 101)), on_passages(*range(100)), batch_size=8)
    random.seed(1)
    torch.manual_seed(1)
    first = batches(seed=3, epoch=2)
    random.seed(2)
    torch.manual_seed(2)
    assert batches(seed=3, epoch=2) == first
    assert batches(seed=4, epoch=2) != first
    assert batches(seed=3, epoch=1) != first
    sampler = sampler_of(on_passages(*range(100)), list(range(1, 101)), batch_size=8, seed=3, epochs=4)
    epoch_of(sampler, 0)  # whatever was read before
    assert epoch_of(sampler, 2) == first


def test_rows_of_like_length_go_together_so_that_padding_is_small():
    rng = random.Random(0)
    lengths = [rng.randint(5, 250) for _ in range(1000)]
    conflicts = on_passages(*[rng.randrange(900) for _ in range(1000)])

    def padded(batches):
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches) / sum(lengths) - 1

    shuffled = rng.sample(range(1000), 1000)
    assert padded([shuffled[start : start + 32] for start in range(0, 1000, 32)]) > 0.8
    assert padded(plan(lengths, conflicts, batch_size=32, seed=0, epoch=0)) < 0.2


def test_batches_come_in_random_order_of_length():
    lengths = list(range(1, 1001))
    means = [sum(batch) / len(batch) for batch in plan(lengths, on_passages(*lengths), batch_size=10, seed=0, epoch=0)]
    ascending = sum(left < right for left, right in pairwise(means))
    assert 30 < ascending < 70  # of 99


def test_conflicts_are_read_from_the_qrels_negatives_included():
    data = RetrievalSet(
        {"q1": "1", "q2": "2", "q3": "3"},
        {"a": "A", "b": "B", "c": "C", "d": "D"},
        {"q1": {"a": 1, "b": 0}, "q2": {"b": 1, "d": 0}, "q3": {"c": 1, "d": 0}},
        {},
    )
    rows = to_rows(data, "triplet", negatives=partial(draw_random, per_query=1), seed=0)
    conflicts = Conflicts.of(rows, data)
    assert conflicts.between(0, 1)  # q1's negative b is relevant to q2
    assert conflicts.between(1, 0)
    assert not conflicts.between(1, 2)  # d is a negative of both
    assert conflicts.mask([2, 1]) is None
    assert conflicts.mask([1, 2, 0]).tolist() == [[False, False, True], [False, False, False], [True, False, False]]
    assert conflicts.count([[0, 1], [2]]) == 2


def loss_of(queries, *passages, mask=None):
    loss = MultipleNegativesRankingLoss(model=None, scale=1.0)
    similarity = loss.similarity_fct = MaskedSimilarity(loss.similarity_fct)
    similarity.mask = mask
    return float(loss.compute_loss_from_embeddings([queries, *passages], None))


def test_a_masked_false_negative_weighs_as_if_it_were_not_there():
    # three queries, each equal to its own passage: similarity 1 on the diagonal, 0 elsewhere
    unmasked, one_less = math.log(math.e + 2) - 1, math.log(math.e + 1) - 1
    assert loss_of(torch.eye(3), torch.eye(3)) == pytest.approx(unmasked)
    mask = on_passages(0, 0, 1).mask([0, 1, 2])
    assert loss_of(torch.eye(3), torch.eye(3), mask=mask) == pytest.approx((2 * one_less + unmasked) / 3)


def test_a_masked_rows_negatives_weigh_nothing_either():
    # with a negative each, similar to nothing: a row with no conflict sees five others, one with a conflict three
    queries = torch.eye(3, 6)
    negatives = torch.eye(6)[3:]
    mask = on_passages(0, 0, 1).mask([0, 1, 2])
    expected = (2 * math.log(math.e + 3) + math.log(math.e + 5)) / 3 - 1
    assert loss_of(queries, queries, negatives, mask=mask) == pytest.approx(expected)


def test_scores_of_each_row_with_itself_have_nothing_to_mask():
    similarity = MaskedSimilarity(torch.nn.functional.cosine_similarity)
    similarity.mask = on_passages(0, 0).mask([0, 1])
    assert similarity(torch.eye(2), torch.eye(2)).tolist() == [1, 1]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return SentenceTransformer(str(tiny_transformer(tmp_path_factory.mktemp("tiny"))), device="cpu")


def cached(model, **options):
    return losses.CachedMultipleNegativesRankingLoss(model, **options)


@pytest.mark.parametrize("part", [1, 2, 8])
@pytest.mark.parametrize("directions", [["query_to_doc"], ["query_to_doc", "doc_to_query", "doc_to_doc"]])
def test_a_cached_loss_in_parts_masks_as_the_plain_one(tiny_model, part, directions):
    torch.manual_seed(0)
    embeddings = [torch.nn.functional.normalize(torch.randn(5, 8), dim=1) for _ in range(3)]
    mask = on_passages(0, 0, 1, 2, 1).mask(range(5))
    plain, parts = losses.MultipleNegativesRankingLoss(None, directions=directions), cached(
        tiny_model, mini_batch_size=part, directions=directions
    )  # fmt: skip
    unmasked = float(plain.compute_loss_from_embeddings(embeddings, None))
    for loss in (plain, parts):
        (masked,) = MaskedSimilarity.put_into(loss)
        masked.mask = mask
    expected = float(plain.compute_loss_from_embeddings(embeddings, None))
    split = [list(column.split(part)) for column in embeddings]
    assert float(parts.calculate_loss(split)) == pytest.approx(expected, abs=1e-5)
    assert expected < unmasked - 0.01
    assert parts.mini_batch_size == part


def test_a_guided_loss_masks_too(tiny_model):
    loss = gist(tiny_model, temperature=1.0, contrast_anchors=False, contrast_positives=False)
    (masked,) = MaskedSimilarity.put_into(loss)
    masked.mask = on_passages(0, 0).mask([0, 1])
    assert loss.sim_matrix(torch.eye(2), torch.eye(2)).tolist() == [[1, -math.inf], [-math.inf, 1]]


def test_a_mask_reaches_the_loss_inside_another(tiny_model):
    inner = losses.MultipleNegativesRankingLoss(tiny_model)
    assert len(MaskedSimilarity.put_into(losses.MatryoshkaLoss(tiny_model, inner, [32, 8]))) == 1
    assert isinstance(inner.similarity_fct, MaskedSimilarity)
    assert len(MaskedSimilarity.put_into(losses.MatryoshkaLoss(tiny_model, cached(tiny_model), [32, 8]))) == 1


def test_losses_that_compare_no_other_row_as_a_candidate_are_left_alone(tiny_model):
    for name in ("CoSENTLoss", "AnglELoss", "MarginMSELoss", "DistillKLDivLoss", "GlobalOrthogonalRegularizationLoss"):
        loss = getattr(losses, name)(tiny_model)
        assert MaskedSimilarity.put_into(loss) == []
        assert not isinstance(loss.similarity_fct, MaskedSimilarity)


def test_rows_with_labels_of_their_own_have_no_conflicts(toy):
    rows = to_rows(toy, "labelled_pair", negatives=partial(draw_random, per_query=1), seed=0)
    conflicts = Conflicts.of(rows, toy)
    assert conflicts.mask(range(len(rows))) is None
    assert Conflicts.of(to_rows(toy, "pair", negatives=None, seed=0), toy).between(0, 1)  # two questions on a passage


def test_scores_of_another_shape_than_the_batch_are_never_masked_by_guess():
    similarity = MaskedSimilarity(lambda left, right: left @ right.T)
    similarity.mask = on_passages(0, 0).mask([0, 1])
    with pytest.raises(RuntimeError, match=r"can't mask scores of shape \(3, 3\) in a batch of 2 rows"):
        similarity(torch.eye(3), torch.eye(3))


def first_fit(order, conflicts, batch_size):
    """Each row in the first of all unfilled batches without a conflict, tried row by row."""
    done, unfilled = [], []
    for row in order:
        batch = next((b for b in unfilled if not any(conflicts.between(row, other) for other in b)), None)
        if batch is None:
            unfilled.append(batch := [])
        batch.append(row)
        if len(batch) == batch_size:
            done.append(unfilled.pop(next(place for place, other in enumerate(unfilled) if other is batch)))
    return done + unfilled


@settings(deadline=None, max_examples=150)
@given(data=data_sets(), batch_size=st.integers(2, 6), seed=st.integers(0, 99))
def test_rows_are_placed_as_if_each_were_tried_in_every_unfilled_batch(data, batch_size, seed):
    conflicts, lengths = data
    order = np.random.default_rng(seed).permutation(len(lengths))
    batches = [batch.rows for batch in batches_module._filled(order, conflicts, batch_size=batch_size)]
    assert batches == first_fit(order.tolist(), conflicts, batch_size)


def test_ten_thousand_questions_on_one_passage_are_planned_in_pairs():
    sampler = sampler_of(on_passages(*[0] * 10_000), [5] * 10_000, batch_size=64)
    assert {len(batch) for batch in sampler} == {2}
    assert sampler.masked_rows == 10_000
