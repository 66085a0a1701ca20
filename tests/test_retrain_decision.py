"""When a new model is promoted, and what is said where it is not; and what the two are compared on."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from embexp.errors import UserError
from embexp.evaluation.significance import Delta, Scores
from embexp.retrain import comparing
from embexp.retrain.comparing import part_of
from embexp.retrain.decision import decided
from embexp.retrain.recipe import Recipe, divided, joined, start_from


def part(low, high, *, documents=40):
    """A part of the questions whose interval is this; it excludes zero or does not."""
    middle = (low + high) / 2
    significant = low > 0 or high < 0
    delta = Delta(middle, None, low, high, 0.01 if significant else 0.5, 1, 1, 1, 80, documents)
    return {"current": 0.5, "new": 0.5 + middle, "queries": 80, "documents": documents, "delta": asdict(delta),
            "verdict": delta.verdict}  # fmt: skip


def found(whole, old, new):
    return {"parts": {"all": whole, "old": old, "new": new}}


BETTER, SAME, WORSE = part(0.01, 0.09), part(-0.015, 0.05), part(-0.09, -0.01)
LOOSE, FEW = part(-0.03, 0.05), part(0.1, 0.3, documents=19)


@pytest.mark.parametrize(
    ("parts", "promoted", "said", "advised"),
    [
        (found(BETTER, SAME, SAME), True, "better on today's test", None),
        (found(BETTER, None, BETTER), True, "better on today's test", None),
        (found(SAME, SAME, BETTER), True, "better on what is new, and not worse by 0.02", None),
        (
            found(SAME, LOOSE, BETTER),
            False,
            "a loss of 0.02 on documents as they were is not ruled out",
            "before the figures",
        ),
        (found(SAME, part(0, 0.1, documents=19), BETTER), False, "too few documents as they were", None),
        (found(SAME, None, BETTER), False, "too few documents as they were", None),
        (found(SAME, SAME, SAME), False, "not better on what is new", "a difference below about 0.033"),
        (found(SAME, SAME, FEW), False, "not better on what is new: it has 19, and 20 are needed", "more that is new"),
        (found(SAME, SAME, None), False, "has no question on what is new", "more that is new"),
        (found(part(-0.09, 0.03), SAME, FEW), False, "lower on today's test, if not surely worse", "another recipe"),
        (found(WORSE, SAME, BETTER), False, "worse on today's test", "another recipe"),
        (found(None, None, None), False, "no question is left", "real_questions="),
    ],
)
def test_a_model_is_promoted_where_it_is_better_or_not_worse_on_the_old_and_better_on_the_new(
    parts, promoted, said, advised
):
    decision = decided(parts, margin=0.02, forgetting=None)
    assert decision.promoted is promoted
    assert said in decision.reasons[0]
    assert advised is None or any(advised in line for line in decision.advice), decision.advice
    assert not (promoted and decision.advice)


def test_worse_on_all_of_test_is_never_promoted_for_what_is_new():
    assert not decided(found(WORSE, SAME, BETTER), margin=0.5, forgetting=None).promoted


def test_a_gate_that_was_not_passed_forbids_promotion():
    parts = found(BETTER, BETTER, BETTER)
    refused = decided(parts, margin=0.02, forgetting={"passed": False})
    assert (refused.promoted, "forgotten" in refused.reasons[0]) == (False, True)
    assert all(decided(parts, margin=0.02, forgetting=gate).promoted for gate in (None, {}, {"passed": True}))


def test_the_reasons_have_scores_intervals_questions_and_documents():
    reasons = decided(found(SAME, SAME, BETTER), margin=0.02, forgetting=None).reasons
    expected = (
        "on new and changed documents: 0.500 -> 0.550 (+0.050, 95 % interval +0.010 to +0.090; 80 questions on 40"
    )
    assert any(reason.startswith(expected) for reason in reasons), reasons


def test_the_interval_of_fewer_than_five_documents_is_not_said():
    from embexp.retrain.shown import _compared

    parts = {"all": SAME, "old": part(0.1, 0.3, documents=5), "new": part(0.2, 0.2, documents=4)}
    _, old, new = decided({"parts": parts}, margin=0.02, forgetting=None).reasons[1:]
    assert "(+0.200, 95 % interval +0.100 to +0.300; 80 questions on 5 documents)" in old
    assert "(+0.200, too few documents for an interval; 80 questions on 4 documents)" in new
    state = {"compared": {"metric": "ndcg@10", "parts": parts, "unfair": 0}, "base": {"ndcg@10": 0.5}, "bm25": {}}
    assert [line[-2] for line in _compared(state)[0].lines] == ["-0.015 to +0.050", "+0.100 to +0.300", "too few"]


def test_a_part_compares_both_models_on_its_questions_alone():
    ids = [f"q{number}" for number in range(60)]
    current = Scores(ids, values=np.array([0.0] * 30 + [1.0] * 30))
    new = Scores(ids, values=np.array([1.0] * 30 + [1.0] * 30))
    documents = {query: query for query in ids}
    of_new = part_of(current, new, ids[:30], documents)
    assert (of_new["current"], of_new["new"], of_new["queries"], of_new["verdict"]) == (0, 1, 30, "better")
    of_old = part_of(current, new, ids[30:], documents)
    assert (of_old["delta"]["absolute"], of_old["verdict"]) == (0, "no difference")
    assert part_of(current, new, [], documents) is None


def test_questions_that_the_current_model_learnt_are_not_compared_nor_those_on_its_documents_once_cut_anew(toy):
    from embexp.data.manifest import Manifest
    from embexp.data.retrieval_set import Splits

    def fair(mining, **learnt):
        known = Manifest({}, {}, frozenset({"d2"}), mining)
        return comparing.fair_of(splits, known, learnt, near_duplicate=0.9)

    test = toy.with_queries(["q2.0", "q3.0", "q4.0"])
    splits = Splits(toy.with_queries(["q0.0"]), toy.with_queries(["q1.0"]), test, {})
    assert fair(None) == {"q3.0", "q4.0"}
    assert fair({"miner": {}}) == {"q2.0", "q3.0", "q4.0"}  # whose sides are kept
    copy = test.queries["q3.0"].upper() + "?"
    assert fair(None, learnt=copy) == {"q4.0"}
    assert fair({"miner": {}}, learnt=copy) == {"q2.0", "q4.0"}


def test_questions_on_a_document_that_has_another_name_since_it_was_trained_on_are_not_compared(toy):
    from embexp.data.manifest import Manifest
    from embexp.data.retrieval_set import Splits

    corpus = {**toy.corpus, "p2b": "what was added to the second document"}
    documents = {**toy.documents, "p2": "renamed", "p2b": "renamed"}
    today = replace(toy, corpus=corpus, documents=documents, qrels={**toy.qrels, "q2.1": {"p2b": 1}})
    test = today.with_queries(["q2.0", "q2.1", "q3.0"])
    splits = Splits(today.with_queries(["q0.0"]), today.with_queries(["q1.0"]), test, {})
    known = Manifest({}, {"p2": "d2", "p3": "d3"}, frozenset({"d2"}), None)
    assert comparing.fair_of(splits, known, {}, near_duplicate=0.9) == {"q3.0"}


@pytest.mark.parametrize(
    ("document", "unreadable", "refused"),
    [
        ("a.pdf", {"a.pdf": "damaged"}, True),
        ("a.pdf > Costs > Travel", {"a.pdf": "damaged"}, True),  # split.unit=section
        ("faq.csv#k1", {"faq.csv": "permission denied"}, True),  # rows without a document
        ("team/in/a.md", {"team": "permission denied"}, True),  # a folder
        ("a.md", {".": "stale file handle"}, True),
        ("refunds", {"faq.csv": "empty"}, True),  # a row's own name of its document
        ("a.pdf", {"faq.csv": "empty"}, False),
        ("other.csv#k1", {"faq.csv": "empty"}, False),
        ("a.pdf", {"b.pdf": "damaged", "a.pdf.txt": "empty", "*.png (2 files)": "are not read"}, False),
        ("faq.csv#k1", {"faq.csv": "rows without text: 1; the others were read"}, False),
        ("kept.md", {"kept": "permission denied", ".": "stale file handle"}, False),  # lost a passage, and is there
    ],
)
def test_passages_are_gone_with_an_unreadable_file_where_their_document_is_of_it(document, unreadable, refused):
    from embexp.data.manifest import Manifest
    from embexp.drift.differences import between
    from embexp.drift.today import Today
    from embexp.retrain.unread import refuse_lost

    known = Manifest({"p1": 1, "p2": 2}, {"p1": document, "p2": "kept.md"}, frozenset(), {})
    now = Today({}, {"p2": "kept.md"}, unreadable)
    differences = between(known, {"p2": "text"}, now.units)
    if not refused:
        refuse_lost(known, now, differences)
        return
    with pytest.raises(UserError, match="1 file of documents= can't be read"):
        refuse_lost(known, now, differences)


def test_a_further_word_takes_the_place_of_those_of_its_key_and_below_it():
    words = ["loss=triplet", "loss.margin=0.3", "model=static", "++model.dimension=16", "trainer=smoke"]
    assert joined(words, ["loss=mnrl", "model.dimension=8"]) == [
        "model=static", "trainer=smoke", "loss=mnrl", "model.dimension=8",
    ]  # fmt: skip
    assert joined(words, ["trainer.max_steps=3"]) == [*words, "trainer.max_steps=3"]


def test_words_are_of_retraining_or_of_the_experiment_and_one_is_of_both():
    own = {"documents": 0, "budget": 0, "allowed_packages": 0}
    words = ["documents=x", "budget.usd=1", "loss=mnrl", "+seed=3", "allowed_packages=[mine]"]
    assert divided(words, own) == (["documents=x", "budget.usd=1", "allowed_packages=[mine]"],
                                   ["loss=mnrl", "+seed=3", "allowed_packages=[mine]"])  # fmt: skip


def test_a_trial_of_a_sweep_and_a_folder_that_is_no_run_are_refused(tmp_path):
    from embexp.retrain import recipe

    with pytest.raises(UserError, match="is not a folder"):
        recipe.of(tmp_path / "nowhere", [])
    with pytest.raises(UserError, match=r"has no result\.json"):
        recipe.of(tmp_path, [])


def test_going_on_from_the_current_model_takes_sides_that_stay(toy):
    from embexp.data.splits import Shares, cut, given
    from embexp.drift.today import Today
    from embexp.retrain.renewed import refuse_cut_anew

    anew = cut(toy, Shares())
    with pytest.raises(UserError, match="the data set is cut anew"):
        refuse_cut_anew(Today({}, {}, {}, splits=anew))
    refuse_cut_anew(Today({}, {}, {}, splits=given(anew.train, anew.dev, anew.test)))
    refuse_cut_anew(Today({}, {}, {}))  # mined


def test_a_start_from_the_current_model_trains_on_as_it_was_trained_but_for_what_is_said_now(tmp_path):
    lora = {"_target_": "embexp.models.lora.Lora", "rank": 64, "alpha": 128, "target_modules": ["query", "value"]}
    node = {
        "_target_": "embexp.models.embedding_model.Transformer",
        "path": "x",
        "peft": "lora",
        "lora": lora,
        "dropout": None,
    }
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save({"model": node}, tmp_path / ".hydra" / "config.yaml")
    further = ["seed=3", "model.lora.alpha=32", "++model.dropout=0.2"]
    words = start_from(tmp_path, further)
    assert words == [
        "model=local", f"model.path='{tmp_path / 'model'}'", "model.peft=lora", "model.lora.rank=64",
        "model.lora.target_modules=['query', 'value']", "model.lora.alpha=32", "++model.dropout=0.2",
    ]  # fmt: skip
    command = Recipe(("model=minilm", "model.lora.rank=8", *further), ()).command([], words, tmp_path)
    Recipe(("dataset=docstrings", "logger=none"), ()).refuse_mistakes(words)
    assert command[1:-1] == words
    with pytest.raises(UserError, match="model=minilm names another"):
        start_from(tmp_path, ["model=minilm"])


def test_layers_behind_an_endpoint_are_not_gone_on_from(tmp_path):
    (tmp_path / "model").mkdir()
    stamp = dict.fromkeys(("content", "weights", "dimensions", "max_seq_length", "prompts", "run"), "x")
    (tmp_path / "model" / "embexp.json").write_text(json.dumps({**stamp, "behind": "text-embedding-3-small"}))
    with pytest.raises(UserError, match="layers behind text-embedding-3-small alone; use start=base"):
        start_from(tmp_path, [])


def test_a_try_on_a_part_of_the_data_and_a_run_that_trains_nothing_are_refused(tmp_path):
    words = ("dataset=docstrings", "logger=none", "model=static")
    for further, said in (
        (["limit=50"], "limit=50 is for a try"),
        (["trainer=smoke"], "limit=24 is for a try"),
        (["trainer=none"], "trainer=none trains nothing"),
    ):
        with pytest.raises(UserError, match=said):
            Recipe((*words, *further), ()).refuse_mistakes([])
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "mine.yaml").write_text("defaults: [smoke]\n")
    flags = ("--config-dir", str(tmp_path), "--config-name", "config")
    with pytest.raises(UserError, match="limit=24"):
        Recipe((*words, "trainer=mine"), flags).refuse_mistakes([])
    Recipe((*words, "trainer=mine", "limit=null"), flags).refuse_mistakes([])


def test_new_or_corrected_questions_on_the_same_passages_are_something_to_train_on(toy):
    from embexp.data.splits import Shares, cut
    from embexp.drift.today import Today
    from embexp.results.finished import Finished
    from embexp.results.result import data_digests
    from embexp.retrain.retraining import _asked, _new_questions

    config = {"real_questions": None, "start": "base", "budget": {}}
    before = cut(toy, Shares())
    current = Finished(Path("run"), {"fingerprint": data_digests(before)})
    same, mined = Today({}, {}, {}, splits=before), Today({}, {}, {})
    corrected = replace(toy, queries={**toy.queries, "q0.0": "what is said of the first one"})
    now = Today({}, {}, {}, splits=cut(corrected, Shares()))
    assert [_new_questions(current, each) for each in (same, mined, now)] == [False, False, True]
    assert _asked(same, [], config) != _asked(now, [], config)
    assert _asked(same, [], config) == _asked(Today({}, {}, {}, splits=cut(toy, Shares())), [], config)


def test_an_attempt_that_begins_again_with_other_documents_has_trained_nothing_yet(tmp_path):
    from embexp.retrain.attempts import open_for
    from embexp.retrain.pointer import Models
    from embexp.retrain.retraining import DONE_ALREADY, _done_already

    models = Models(tmp_path / "models")
    models.folder.mkdir()
    attempt = open_for(models, {"passages": "a"}, margin=0.02)
    attempt.write(trained={"command": []})
    again = open_for(models, {"passages": "b"}, margin=0.02)
    assert again.folder == attempt.folder
    again.write(decision={"promoted": False, "margin": 0.02, "reasons": ["no new question"]})
    assert _done_already(models) == "no new question"
    again.write(trained={"command": []})
    assert _done_already(models) == DONE_ALREADY


def test_no_margin_is_advised_and_how_often_a_test_has_decided_is_said(tmp_path):
    from embexp.results.finished import Finished
    from embexp.retrain import shown
    from embexp.retrain.attempts import open_for
    from embexp.retrain.pointer import STARTED, Models
    from embexp.retrain.retraining import _ended

    against = decided(found(SAME, LOOSE, BETTER), margin=0.02, forgetting=None)
    assert "0.03" not in " ".join(against.advice)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    models = Models(tmp_path / "models")
    models.folder.mkdir()
    models.turn(STARTED, tmp_path / "run", ["the first"])
    said, names = [], []
    for passages, recipe, margin in (("a", 1, 0.02), ("a", 1, 0.01), ("a", 2, 0.02), ("b", 2, 0.02)):
        attempt = open_for(models, {"passages": passages, "words": recipe}, margin=margin)
        scores = {"recall@3": 0.5}
        attempt.write(compared={"metric": "recall@3", "parts": {"all": SAME}, "unfair": 0}, base=scores, bm25=scores)
        outcome = _ended(models, Finished(tmp_path / "run", {}), attempt, against, {"margin": margin, "keep": 5})
        names.append(attempt.folder.name)
        said.append("has now decided" in shown.text(outcome, models))
    assert names == ["0001", "0001", "0002", "0003"]
    assert said == [False, True, True, False]
    assert open_for(models, {"passages": "b", "words": 2}, margin=0.02) is None
