"""Every arm of a run on one report, with its costs; and a run that was ended in the middle of them."""

from __future__ import annotations

import pytest
from sentence_transformers import SentenceTransformer

from embexp import run
from embexp.arms import measured as measured_arms
from embexp.config.experiment import mistakes_in
from embexp.reporting.report import report
from tests.command import QUICK
from tests.test_config import composed
from tests.tiny import tiny_cross_encoder

ARMS = ["bm25", "base", "hybrid_base", "adapter", "tuned", "merged", "hybrid_tuned", "reranked"]
ASKED = ["arms=[hybrid,adapter,merged]", "learning_curve=true", "limit=null", "trainer.learning_rate=0.05",
         "dataset.split.test=0.4", "adapter_arm.num_train_epochs=2", "adapter_arm.learning_rate=0.05",
         "guard_dataset=docstrings", "guard_dataset.packages=[json,logging,email]", "max_forgetting=0.5"]  # fmt: skip


def test_every_arm_is_on_the_report_also_of_a_run_that_failed_before_they_were_compared(
    embexp, pairs, tmp_path, monkeypatch
):
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group"]
    compared = measured_arms.compared
    monkeypatch.setattr(measured_arms, "compared", lambda *_, **__: 1 / 0)
    again = ["reranker=pretrained", f"reranker.path={tiny_cross_encoder(tmp_path / 'judge')}", "reranker.depth=5"]
    broken = embexp(*QUICK, *data, *ASKED, *again)
    before = broken.result
    assert (before["status"], before["arms"]) == ("failed", None)
    monkeypatch.setattr(measured_arms, "compared", compared)
    whole = embexp(f"resume={broken.folder}")
    assert whole.code == 0, whole.output
    assert whole.output.count("going on from step 4") == 4  # the adapter, the model, both parts of the questions
    found = broken.result
    for key in ("tuned", "learning_curve"):  # all that was scored before it failed
        assert found[key] == before[key]
    assert list(found["arms"]) == ARMS
    for name in ("bm25", "base", "tuned"):
        assert {side: found["arms"][name][side] for side in ("dev", "test")} == found[name]
    for side in ("dev", "test"):
        assert found["arms"]["reranked"][side] == found["reranker"][side]
    assert found["arms"]["tuned"]["delta"] == found["delta"]
    assert found["arms"]["base"]["delta"] is None
    guard, merge = found["forgetting"], found["arms"]["merged"]["merge"]
    chosen = merge["shares"][f"{merge['chosen']:g}"]
    assert chosen == {"dev": found["arms"]["merged"]["dev"]["recall@10"], "guard": guard["merged"]["dev"]["recall@10"]}
    assert run._summary(found)["guard/merged/recall@10"] == guard["merged"]["test"]["recall@10"]
    verdict = found["arms_verdict"]
    assert found["arms"][verdict["best"]]["against_best"] is None
    assert verdict["cheapest"] in verdict["as_good"]
    assert sorted([*verdict["as_good"], *verdict["worse"], *verdict["undecided"]]) == sorted(ARMS)
    cost = {name: arm["cost"] for name, arm in found["arms"].items()}
    assert cost["hybrid_base"]["index_mib"] > cost["base"]["index_mib"] == cost["tuned"]["index_mib"]
    assert cost["adapter"]["training_s"] > 0  # though it was trained before
    assert cost["base"]["training_s"] == 0 < cost["tuned"]["training_s"] <= cost["merged"]["training_s"]
    assert cost["base"]["query_ms"] == cost["tuned"]["query_ms"] < cost["reranked"]["query_ms"]  # one network
    assert cost["reranked"]["training_s"] == cost["tuned"]["training_s"]  # this reranker is not trained
    assert [point["share"] for point in found["learning_curve"]["points"]] == [0.25, 0.5, 1.0]
    assert found["learning_curve"]["points"][-1]["test"] == found["tuned"]["test"]

    text = (broken.folder / "report.md").read_text()
    for words in (
        "Arm to run: ",
        "| BM25 + tuned",
        "| tuned + reranker",
        "The arm merged: ",
        "lose at most 0.5 on the guard set's dev",
        "ms a question",
        "| 25%",
        "to train on would",
    ):
        assert words in text
        assert words in whole.output
    assert "| the arm merged |" in text
    page = (broken.folder / "report.html").read_text()
    assert 'id="arms"' in page
    assert "recall@10 of each arm, minus the base" in page
    frame = (broken.folder / "retrieval" / "hybrid_tuned.test.trec").read_text()
    assert " Q0 " in frame
    flat = run._summary(found)
    assert flat["test/hybrid_base/recall@10"] == found["arms"]["hybrid_base"]["test"]["recall@10"]
    assert flat["dev/tuned/recall@10"] == found["tuned"]["dev"]["recall@10"]
    assert flat["arm_to_run"] == verdict["cheapest"]
    assert not (broken.folder / "checkpoints").exists()
    for name in ("adapter", "merged"):
        assert SentenceTransformer(str(broken.folder / "arms" / name)).encode("anything").shape == (16,)


def test_without_a_training_hybrids_of_the_base_show_whether_to_tune_at_all(embexp, sources, tmp_path):
    judge = ["reranker=pretrained", f"reranker.path={tiny_cross_encoder(tmp_path / 'judge')}", "reranker.depth=5"]
    run = embexp("model=static", "model.dimension=16", "trainer=none", "logger=none", *sources["pairs"],
                 "arms=[hybrid]", *judge)  # fmt: skip
    found = run.result
    assert list(found["arms"]) == ["bm25", "base", "hybrid_base", "reranked"]
    assert found["tuned"] is None
    text = report(found, found["names"])
    assert "Test has too few documents to compare arms with it" in text
    assert "| base + reranker |" in text
    assert "tuned + reranker" not in text

    # each passage scores the sum of 1 / (60 + its rank) over both rankings, and of equal sums the model's first
    rankings = [read(run.folder / "retrieval" / f"{arm}.test.trec") for arm in ("base", "bm25")]
    qrels = (run.folder / "retrieval" / "qrels.test.tsv").read_text().splitlines()
    right = {line.split()[0]: line.split()[-2] for line in qrels}
    ranks = []
    for query, by_model in rankings[0].items():
        places = [by_model, rankings[1].get(query, [])]
        sums = {each: sum(1 / (61 + ids.index(each)) for ids in places if each in ids) for each in by_model}
        ranks.append(sorted(by_model, key=lambda each: -round(sums[each], 12)).index(right[query]) + 1)
    hybrid = found["arms"]["hybrid_base"]["test"]
    assert hybrid != found["base"]["test"]
    assert hybrid["recall@1"] == pytest.approx(sum(rank == 1 for rank in ranks) / len(ranks))
    assert hybrid["mrr@10"] == pytest.approx(sum(1 / rank for rank in ranks if rank <= 10) / len(ranks))


def read(file):
    """query -> the ids of its passages, best first; of a TREC file."""
    found = {}
    for line in file.read_text().splitlines():
        query, _, passage, *_ = line.split()
        found.setdefault(query, []).append(passage)
    return found


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["arms=[hybird]"], "there is no arm hybird; did you mean hybrid?"),
        (["arms=[hybrid]", "sweep=mnrl"], "arms=[hybrid] is for a single run"),
        (["learning_curve=true", "sweep=mnrl"], "learning_curve=true is for a single run"),
        (["arms=[adapter]", "trainer=none"], "arms=[adapter] needs a training"),
        (["learning_curve=true", "trainer=none"], "learning_curve=true needs a training"),
        (["arms=[reranked]"], "there is no arm reranked; there are hybrid, adapter, merged"),
        (["arms=[hybrid]", "model=openai_embeddings", "trainer=none"], "an endpoint would be paid for"),
        (["arms=[merged]", "merge=true"], "merged already"),
        (["arms=[adapter]", "model.adapter=linear"], "an adapter already"),
        (["arms=[adapter]", "loss=gist"], "choose loss=mnrl"),
        (["arms=[adapter]", "adapter_arm.kind=quadratic"], "must be one of linear, mlp, query_linear"),
        (["arms=[hybrid]", "adapter_arm.learning_rate=fast"], "adapter_arm.learning_rate='fast' must be a number"),
        (["arms=[hybrid]", "metric=similarity.spearman_cosine", "evaluator=similarity"], "compares rankings"),
        (["arms=hybrid"], "must be a list of hybrid, adapter, merged"),
        (["margin=0"], "margin=0 must be above 0"),
        (["margin=2"], "margin=2 must be from 0 to 1"),
    ],
)
def test_arms_that_can_not_be_made_are_refused_before_anything_loads(overrides, words):
    assert any(words in problem for problem in mistakes_in(composed(*overrides)))


def test_the_experiment_of_all_arms_has_no_mistake():
    assert mistakes_in(composed("experiment=arms")) == []
