"""Looks at dev cost what they may: fewer distractors first, then fewer looks, then fewer queries; by tokens alone."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from embexp.cache import kept_in
from embexp.data.retrieval_set import RetrievalSet
from embexp.evaluation.evaluators import Evaluation, Retrieval
from embexp.models.embedding_model import Static
from embexp.training.looks import Asked, asked_of, every_look, plan_of, planned
from tests.hits import ranking_of

NEGATIVES = {"negatives": None, "seed": 0}


def dev_of(queries, passages=None):
    """Each query has 2 tokens and one relevant passage of 4; the base ranks all passages alike for each."""
    corpus = {f"p{i:03}": "one two three four" for i in range(passages or queries)}
    texts = {f"q{i:03}": "one two" for i in range(queries)}
    # texts must differ, or they would be embedded once
    corpus = {key: f"{text} {key}" for key, text in corpus.items()}
    texts = {key: f"{text} {key}" for key, text in texts.items()}
    return RetrievalSet(texts, corpus, {f"q{i:03}": {f"p{i:03}": 1} for i in range(queries)}, {})


class Words:
    """Counts a token for each word."""

    query_prompt = passage_prompt = ""


@pytest.fixture(autouse=True)
def words(monkeypatch):
    def counted(model, texts, prompt):
        return np.array([len(text.split()) for text in texts], dtype=np.int64)

    monkeypatch.setattr("embexp.training.looks.PASSAGES", 0)  # the sizes here are small
    monkeypatch.setattr("embexp.training.looks.lengths", counted)


def plan(dev, *, tokens, looks, fixed=False, share=0.05, distractors=10, model=None):
    others = list(dev.corpus)[len(dev.queries) :]
    base = Evaluation({}, ranking_of(dict.fromkeys(dev.queries, others), list(dev.corpus)))
    return planned(
        [Retrieval([10], training_distractors=distractors)],
        base,
        dev,
        model=model or Words(),
        asked=Asked(tokens, looks, fixed),
        share=share,
        negatives=NEGATIVES,
    )


def size(found):
    ((_, data),) = found.sets
    return len(data.queries), len(data.corpus)


# a look: 20 queries of 3 tokens, 20 relevant passages of 5 and some of the other 10, of 5: 160, and 5 for each of these
DEV = dev_of(20, passages=30)


def test_a_long_training_is_looked_at_as_the_config_says(caplog):
    caplog.set_level(logging.INFO, logger="embexp")
    found = plan(DEV, tokens=4200, looks=4)  # 3 looks, the last is free: 3 x 210 of 3 x 4200
    assert (size(found), found.most) == ((20, 30), 4)
    assert caplog.messages[0].endswith("expected to cost 5.0 % of it")  # 3 x 210 of 3 x 4200


def test_hard_distractors_go_first():
    found = plan(DEV, tokens=4199, looks=4)  # one token less: 5 per query are left
    assert (size(found), found.most) == ((20, 25), 4)
    assert size(plan(DEV, tokens=3300, looks=4)) == (20, 21)  # 3 x 165 / 3 x 3300


def test_the_configured_number_of_distractors_is_the_most():
    assert size(plan(DEV, tokens=10**6, looks=4, distractors=3)) == (20, 23)
    assert size(plan(DEV, tokens=10**6, looks=4, distractors=None)) == (20, 30)


def test_then_there_are_fewer_looks():
    found = plan(DEV, tokens=3299, looks=4)  # 5 % are 494 tokens: two looks of 165, and the last
    assert (size(found), found.most) == ((20, 21), 3)
    assert plan(DEV, tokens=1100, looks=4).most == 2


def test_then_a_sample_of_queries_that_is_always_the_same_and_not_below_a_hundred():
    dev = dev_of(300)  # 8 tokens for each query and its passage
    found = plan(dev, tokens=8000, looks=4)  # 5 % are 1,200 tokens: 150 queries
    assert (size(found), found.most) == ((150, 150), 2)
    ((_, data),), ((_, again),) = found.sets, plan(dev, tokens=8000, looks=4).sets
    assert data.queries == again.queries
    assert set(data.corpus) == {query.replace("q", "p") for query in data.queries}
    assert list(data.queries) != list(dev.queries)[:150]
    assert size(plan(dev, tokens=5400, looks=4)) == (101, 101)


def test_where_even_that_is_too_much_the_look_at_the_end_is_left():
    found = plan(dev_of(300), tokens=5000, looks=4)  # 5 % are 750 tokens: 93 queries
    assert (size(found), found.most) == ((100, 100), 1)


def test_a_study_keeps_its_number_of_looks_and_pays_each(caplog):
    caplog.set_level(logging.INFO, logger="embexp")
    found = plan(dev_of(300), tokens=8000, looks=4, fixed=True)  # 300 tokens a look: 37 queries, so 100
    assert (size(found), found.most) == ((100, 100), None)  # as many as configured, whatever the batches come to
    assert "4 looks at 100 of 300 dev queries" in caplog.text
    assert "expected to cost 13.3 % of it" in caplog.text  # 4 x 800 of 3 x 8000


def test_a_look_keeps_enough_passages_for_a_score_to_differ(monkeypatch):
    monkeypatch.setattr("embexp.training.looks.PASSAGES", 25)
    found = plan(DEV, tokens=10, looks=4)  # of 20 queries: one hard passage each would be cheaper
    assert size(found) == (20, 25)  # five each, the same for all


def test_without_a_bound_all_is_looked_at_as_configured():
    found = plan(DEV, tokens=10, looks=4, share=None)
    assert (size(found), found.most) == ((20, 30), None)


def test_what_was_chosen_is_logged_with_its_cost(caplog):
    with caplog.at_level(logging.INFO, logger="embexp"):
        plan(dev_of(300), tokens=8000, looks=4)
    assert caplog.messages == [
        "while training: 2 of 4 looks at 150 of 300 dev queries, with up to 1 hard passages each; "
        "expected to cost 5.0 % of it"
    ]


ARGUMENTS = {
    "eval_strategy": "steps", "eval_steps": 250, "per_device_train_batch_size": 4, "num_train_epochs": 3,
    "early_stopping": None,
}  # fmt: skip


def asked(*, per_epoch=None, rows=40, **changed):
    return asked_of({**ARGUMENTS, **changed}, DEV, rows, model=Words(), per_epoch=per_epoch)


def test_what_is_asked_for_follows_from_the_config():
    assert asked() == Asked(3 * 160, 6, fixed=False)  # 10 steps an epoch, a look after 5
    assert asked(eval_steps=4) == Asked(480, 8, fixed=False)  # of 30 steps, the end included
    assert asked(eval_steps=0.25) == Asked(480, 4, fixed=False)
    assert asked(max_steps=5) == Asked(80, 2, fixed=False)  # half an epoch: after 3 steps and 5
    assert asked(early_stopping=3) == Asked(480, 6, fixed=True)  # it needs the looks that it counts
    assert asked(eval_strategy="epoch") == Asked(480, 3, fixed=True)
    assert asked(eval_strategy="no") is None
    assert asked(per_epoch=4) == asked(per_epoch=4, num_train_epochs=9, rows=8) == Asked(160, 4, fixed=True)


def test_looks_are_spread_over_the_training_and_no_more_than_planned():
    assert every_look(ARGUMENTS, 10, 30) == 5
    assert every_look(ARGUMENTS, 10, 30, most=4) == 8  # after 8, 16, 24 and, at the end, 30 steps
    assert every_look(ARGUMENTS, 10, 30, most=1) == 30
    assert every_look({**ARGUMENTS, "eval_steps": 0.1}, 10, 30, most=4) == 0.25


def kept_plan(folder, *, ranked, dev=DEV):
    """The plan of a run whose base ranks the other passages in this order: two looks, one to pay of 1,200 tokens."""
    base = Evaluation({}, ranking_of(dict.fromkeys(dev.queries, ranked), list(dev.corpus)))
    trainer = {**ARGUMENTS, "num_train_epochs": 50, "eval_steps": 0.5, "evaluation_share": 0.05}
    return plan_of(
        trainer,
        [Retrieval([1], training_distractors=2)],
        base,
        dev,
        model=SimpleNamespace(query_prompt="", passage_prompt="", origin={"content": "weights"}),
        train_set=DEV,
        rows=40,
        looks_per_epoch=None,
        negatives=NEGATIVES,
        folder=folder,
    )


def test_a_run_that_goes_on_keeps_its_plan_though_its_base_ranks_otherwise_now(tmp_path):
    others = list(DEV.corpus)[20:]
    first, other = kept_plan(tmp_path / "run", ranked=others), kept_plan(tmp_path / "other", ranked=others[::-1])
    ((_, chosen),), ((_, another),) = first.sets, other.sets
    assert list(chosen.corpus)[20:] == others[:2] != list(another.corpus)[20:]
    again = kept_plan(tmp_path / "run", ranked=others[::-1])
    ((_, kept),) = again.sets
    assert (kept, again.most) == (chosen, first.most)


def test_a_plan_for_a_sample_of_queries_comes_back_with_it(tmp_path):
    dev = dev_of(300)
    first = kept_plan(tmp_path, ranked=[], dev=dev)
    ((_, chosen),) = first.sets
    assert len(chosen.queries) == 150
    ((_, kept),) = kept_plan(tmp_path, ranked=[], dev=dev).sets
    assert (kept, list(kept.queries)) == (chosen, list(chosen.queries))


def test_the_plan_of_another_dev_is_not_used(tmp_path):
    kept_plan(tmp_path, ranked=list(DEV.corpus)[20:])
    ((_, data),) = kept_plan(tmp_path, ranked=[], dev=dev_of(10)).sets
    assert len(data.queries) == 10


def test_a_static_model_counts_its_own_tokens(monkeypatch):
    monkeypatch.undo()
    model = Static(dimension=8, vocabulary=200).load(DEV.corpus.values())
    found = asked_of(ARGUMENTS, DEV, 40, model=model, per_epoch=None)
    ids = model.model.tokenizer.encode_batch([*DEV.queries.values(), *list(DEV.corpus.values())[:20]])
    assert found.tokens == 3 * sum(len(encoding.ids) for encoding in ids)


def test_a_second_run_plans_its_looks_without_loading_the_model(monkeypatch, tmp_path):
    monkeypatch.undo()

    def unloadable():
        raise AssertionError("the model was loaded")

    def chosen(model):
        asked = asked_of(ARGUMENTS, DEV, 40, model=model, per_epoch=None)
        return asked, size(plan(DEV, tokens=3299, looks=4, model=model))

    model = Static(dimension=8, vocabulary=200).load(DEV.corpus.values())
    with kept_in(tmp_path):
        first = chosen(model)
        assert chosen(replace(model, loaded=unloadable)) == first
