"""Every arm of a run on one report, with its costs; and a run that was ended in the middle of them."""

from __future__ import annotations

import pytest
from sentence_transformers import SentenceTransformer

from embexp import measured_arms, run
from embexp.config import mistakes_in
from embexp.report import report
from tests.command import QUICK
from tests.test_config import composed

ARMS = ["bm25", "base", "hybrid_base", "adapter", "tuned", "merged", "hybrid_tuned"]
ASKED = ["arms=[hybrid,adapter,merged]", "learning_curve=true", "limit=null", "trainer.learning_rate=0.05",
         "dataset.split.test=0.4", "adapter_arm.num_train_epochs=2", "adapter_arm.learning_rate=0.05"]  # fmt: skip


def test_every_arm_is_on_the_report_also_of_a_run_that_failed_before_they_were_compared(embexp, pairs, monkeypatch):
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group"]
    costs = measured_arms.costs
    monkeypatch.setattr(measured_arms, "costs", lambda *_, **__: 1 / 0)
    broken = embexp(*QUICK, *data, *ASKED)
    before = broken.result
    assert (before["status"], before["arms"]) == ("failed", None)
    monkeypatch.setattr(measured_arms, "costs", costs)
    whole = embexp(f"resume={broken.folder}")
    assert whole.code == 0, whole.output
    assert whole.output.count("going on from step 4") == 4  # the adapter, the model, both parts of the questions
    found = broken.result
    for key in ("tuned", "learning_curve"):
        assert found[key] == before[key]
    assert list(found["arms"]) == ARMS
    for name in ("bm25", "base", "tuned"):
        assert {side: found["arms"][name][side] for side in ("dev", "test")} == found[name]
    assert found["arms"]["tuned"]["delta"] == found["delta"]
    assert found["arms"]["base"]["delta"] is None
    verdict = found["arms_verdict"]
    assert found["arms"][verdict["best"]]["against_best"] is None
    assert verdict["cheapest"] in verdict["as_good"]
    assert sorted([*verdict["as_good"], *verdict["worse"], *verdict["undecided"]]) == sorted(ARMS)
    cost = {name: arm["cost"] for name, arm in found["arms"].items()}
    assert cost["hybrid_base"]["index_mib"] > cost["base"]["index_mib"] == cost["tuned"]["index_mib"]
    assert cost["adapter"]["training_s"] > 0  # though it was trained before
    assert cost["base"]["training_s"] == 0 < cost["tuned"]["training_s"] <= cost["merged"]["training_s"]
    assert cost["base"]["query_ms"] == cost["tuned"]["query_ms"]  # one network
    assert [point["share"] for point in found["learning_curve"]["points"]] == [0.25, 0.5, 1.0]
    assert found["learning_curve"]["points"][-1]["test"] == found["tuned"]["test"]

    text = (broken.folder / "report.md").read_text()
    for words in ("Arm to run: ", "| BM25 + tuned", "ms a question", "| 25%", "to train on would"):
        assert words in text
        assert words in whole.output
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


def test_without_a_training_hybrids_of_the_base_show_whether_to_tune_at_all(embexp, sources):
    found = embexp("model=static", "model.dimension=16", "trainer=none", "logger=none", *sources["pairs"],
                   "arms=[hybrid]").result  # fmt: skip
    assert list(found["arms"]) == ["bm25", "base", "hybrid_base"]
    assert found["tuned"] is None
    assert "Arm to run" in report(found, found["names"]) or "too few documents" in report(found, found["names"])


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
    ],
)
def test_arms_that_can_not_be_made_are_refused_before_anything_loads(overrides, words):
    assert any(words in problem for problem in mistakes_in(composed(*overrides)))


def test_the_experiment_of_all_arms_has_no_mistake():
    assert mistakes_in(composed("experiment=arms")) == []
