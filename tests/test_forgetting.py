"""A guard set before and after training: what is scored, what is lost, what is said of it, and how the command ends."""

from __future__ import annotations

import json
import re
from functools import partial

import numpy as np
import pytest

from embexp.config.arguments import checked_arguments
from embexp.config.checks import CONFIG_FOLDER
from embexp.config.experiment import mistakes_in
from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.data.splits import halved, limited, only_test
from embexp.errors import UserError
from embexp.evaluation.evaluators import Evaluation
from embexp.evaluation.significance import Scores
from embexp.exit_codes import FORGOTTEN, of_all
from embexp.forgetting import shown as forgotten
from embexp.forgetting.guard import Guard, averaged, guard_of
from embexp.jobs import launcher
from embexp.reporting.card import card
from embexp.reporting.report import at_the_end, report
from embexp.run import _summary
from tests.attempts import Ending, at_file_event, attempt, configured
from tests.conftest import toy_set
from tests.test_config import composed

METRIC = "recall@10"
NAMES = {"model": "static", "dataset": "pairs", "loss": "mnrl"}


def evaluation(values, *, prefix="q"):
    ids = [f"{prefix}{place}" for place in range(len(values))]
    return Evaluation({METRIC: Scores(ids, np.array(values, dtype=float))})


def test_sets_count_alike_in_their_mean_however_many_queries_they_have():
    one, three = evaluation([1], prefix="a"), evaluation([0, 0.5, 0.25], prefix="b")
    both = averaged([one, three])
    assert both.metrics[METRIC] == pytest.approx((1 + 0.25) / 2)
    assert list(both.scores[METRIC].query_ids) == ["a0", "b0", "b1", "b2"]
    assert averaged([three]).metrics == three.metrics


def test_a_metric_that_is_no_mean_is_that_of_a_single_set_alone():
    statistic = Evaluation({METRIC: Scores(["q"], statistic=lambda items: 0.5)})
    assert averaged([statistic]).metrics == {METRIC: 0.5}
    assert averaged([statistic, statistic]).metrics == {}
    guard = Guard({"test": [toy_set(), toy_set()]}, lambda arm, data: statistic, METRIC, {"max_forgetting": None})
    with pytest.raises(UserError, match=r"recall@10 is no mean over queries, so .* over the 2 sets of guard_dataset"):
        guard.measure("base", None)


def measured(*, most):
    """A guard of 20 queries on test, of which tuning loses one, and of 4 on dev, of which it loses two."""
    toy = toy_set()
    dev = toy.with_queries(list(toy.queries)[:4])
    right = {"base": {4: [1, 1, 1, 0], 20: [1] * 10 + [0] * 10}, "tuned": {4: [1, 0, 0, 0], 20: [1] * 9 + [0] * 11}}

    def score(arm, data):
        return Evaluation({METRIC: Scores(list(data.queries), np.array(right[arm][len(data.queries)], dtype=float))})

    told = {
        "max_forgetting": most,
        "queries": {"dev": 4, "test": 20},
        "dataset": "toy",
        "fully_tuned": None,
        "merged": None,
    }
    guard = Guard({"dev": [dev], "test": [toy]}, score, METRIC, told)
    for name in ("base", "bm25", "tuned"):
        guard.measure(name, name)
    return guard


@pytest.mark.parametrize(("most", "passed"), [(None, None), (0.04, False), (0.05, True), (0.2, True), (0, False)])
def test_the_gate_is_passed_where_the_metric_falls_by_no_more_than_it_may(most, passed):
    guard = measured(most=most)
    delta = guard.told["delta"][METRIC]
    assert guard.told["base"] == {"dev": {METRIC: 0.75}, "test": {METRIC: 0.5}}
    assert guard.told["tuned"] == {"dev": {METRIC: 0.25}, "test": {METRIC: 0.45}}
    assert delta["absolute"] == pytest.approx(-0.05)
    assert (delta["losses"], delta["ties"], delta["wins"], delta["documents"]) == (1, 19, 0, 10)
    assert guard.told["passed"] is passed
    assert "bm25" not in guard.told
    assert guard.on_dev("tuned") == 0.25
    assert guard.at_least == (None if most is None else pytest.approx(0.75 - most))


def test_half_of_the_queries_and_the_other_half_share_no_document():
    first, second = halved(toy_set())
    assert len(first.queries) == len(second.queries) == 10
    documents = [{data.document_of(query) for query in data.queries} for data in (first, second)]
    assert documents[0].isdisjoint(documents[1])
    assert halved(toy_set())[0].queries == first.queries
    with pytest.raises(UserError, match="all 2 queries are on one document; choose a data set with a dev"):
        halved(toy_set(documents=1))


@pytest.fixture
def guarded(monkeypatch):
    """What `guard_of` makes of a guard set, which is given, and the result that it writes to."""

    def made(guard, train, *, tests=True, **config):
        monkeypatch.setattr("embexp.forgetting.guard.build", lambda node, allowed: guard)
        node = {"_target_": "embexp.datasets.pairs.load"}
        usual = {"limit": None, "arms": [], "merge": None, "max_forgetting": None, "allowed_packages": []}
        result = {"notes": []}
        return guard_of(
            {**usual, "metric": METRIC, "guard_dataset": node, **config}, train, result, None, tests=tests
        ), result

    return made


TRAIN = Splits(*[RetrievalSet({"t": "where is it"}, {"x": "here"}, {"t": {"x": 1}}, {"x": "x"})] * 3, slices={})


@pytest.mark.parametrize(
    ("config", "dev", "test"),
    [
        ({}, 0, 20),
        ({"merge": True}, 0, 20),
        ({"max_forgetting": 0.1}, 0, 20),
        ({"merge": True, "max_forgetting": 0.1}, 10, 10),
        ({"merge": [0.5], "max_forgetting": 0}, 10, 10),
        ({"arms": ["hybrid", "merged"], "max_forgetting": 0}, 10, 10),
        ({"arms": ["hybrid"], "max_forgetting": 0}, 0, 20),
        ({"limit": 6}, 0, 6),
    ],
)
def test_a_guard_without_a_dev_gives_half_of_its_queries_where_they_choose_a_share(guarded, config, dev, test):
    guard, result = guarded(only_test(toy_set()), TRAIN, **config)
    sides = {side: len(data.queries) for side, (data,) in guard.sides.items()}
    assert sides == result["forgetting"]["queries"] == {**({"dev": dev} if dev else {}), "test": test}
    said = "the guard set pairs has no dev, so half of its queries (10) choose the share and the other half is reported"
    assert result["notes"] == ([said] if dev else [])
    if dev:
        assert guard.sides["dev"][0].queries.keys().isdisjoint(guard.sides["test"][0].queries)


def test_a_guard_with_a_dev_is_scored_on_it_and_a_trial_sees_that_alone(guarded):
    toy = toy_set()
    guard = Splits(toy, toy.with_queries(["q0.0"]), toy.with_queries(["q1.0", "q2.0"]), slices={})
    whole, result = guarded(guard, TRAIN, merge=True, max_forgetting=0.1)
    assert result["forgetting"]["queries"] == {"dev": 1, "test": 2}
    trial, result = guarded(guard, TRAIN, tests=False, merge=True, max_forgetting=0.1)
    assert list(trial.sides) == list(result["forgetting"]["queries"]) == ["dev"]
    assert result["forgetting"]["passed"] is None
    assert whole.sides["dev"][0].queries == trial.sides["dev"][0].queries == {"q0.0": "question 0 about the apple"}


def test_what_the_guard_shares_with_the_training_data_is_noted(guarded):
    toy = toy_set()
    other = RetrievalSet(
        {"t": "Question 0 about the apple?", "u": "anything"}, {"x": toy.corpus["p1"], "y": "new"},
        {"t": {"x": 1}, "u": {"y": 1}}, {"x": "x", "y": "y"},
    )  # fmt: skip
    _, result = guarded(only_test(other), Splits(toy, toy, toy, slices={}))
    assert result["notes"] == [
        "of the guard set pairs 1 passage and 1 query are also in what is trained on, so that it says little of what "
        "is forgotten; choose another guard_dataset"
    ]
    assert guarded(only_test(other), TRAIN)[1]["notes"] == []


def test_a_set_of_several_is_limited_and_halved_set_by_set(guarded):
    toy = toy_set()
    renamed = RetrievalSet(
        {f"b{query}": text for query, text in toy.queries.items()}, toy.corpus,
        {f"b{query}": grades for query, grades in toy.qrels.items()}, toy.documents,
    )  # fmt: skip
    several = Splits(toy, toy.with_queries([]), toy, slices={}, apart=(toy, renamed))
    guard, _ = guarded(several, TRAIN, merge=True, max_forgetting=0)
    assert [[len(data.queries) for data in sets] for sets in guard.sides.values()] == [[10, 10], [10, 10]]
    guard, _ = guarded(several, TRAIN, limit=4)
    assert [len(data.queries) for data in guard.sides["test"]] == [4, 4]
    assert limited(only_test(toy), 4).test.queries.keys() == guard.sides["test"][0].queries.keys()


def test_a_guard_set_is_chosen_by_its_own_name_and_checked_as_a_data_set_is():
    words = ["guard_dataset=docstrings", "guard_dataset.packages=[json]", "max_forgetting=0.02"]
    check = partial(checked_arguments, config_dir=None, sweep=False)
    assert check(words) == ["dataset@guard_dataset=docstrings", *words[1:]]
    for wrong, said in [
        ("guard_dataset=docstring", "there is no such dataset; did you mean docstrings?"),
        ("guard_dataset.min_query_words=few", "guard_dataset.min_query_words='few' must be a whole number"),
        ("guard_dataset.package=[json]", "did you mean guard_dataset.packages?"),
    ]:
        with pytest.raises(UserError, match=said.replace("?", r"\?")):
            check([words[0], wrong] if "." in wrong else [wrong])
    assert (CONFIG_FOLDER / "dataset" / "docstrings.yaml").is_file()


def test_a_limit_needs_a_guard_set_and_is_a_part_of_the_metric():
    config = composed()
    (problem,) = mistakes_in({**config, "max_forgetting": 0.02})
    assert problem.startswith("max_forgetting=0.02 is of a guard set, and there is none; add guard_dataset=nanobeir")
    guarded = {**config, "guard_dataset": config["dataset"]}
    (problem,) = mistakes_in({**guarded, "max_forgetting": 2})
    assert problem == "max_forgetting=2 must be from 0 to 1: 0.02 lets the metric fall by two points"
    assert mistakes_in({**guarded, "max_forgetting": 0}) == []


def test_without_a_training_there_is_no_limit_to_close_and_nothing_to_merge():
    config = composed("trainer=none", "dataset@guard_dataset=docstrings")
    for key, value in [("max_forgetting", 0.02), ("max_forgetting", 0), ("merge", True), ("merge", [0.5])]:
        (problem,) = mistakes_in({**config, key: value})
        assert problem.startswith(f"{key}={value} is of what a training changes, and trainer=none has none")
    assert mistakes_in(config) == mistakes_in({**config, "merge": False}) == []


def test_a_run_that_failed_ends_with_one_and_one_that_forgot_with_a_code_of_its_own(tmp_path):
    assert [of_all(codes) for codes in ([], [0, 0], [0, FORGOTTEN], [1, FORGOTTEN], [-9])] == [0, 0, 5, 1, 1]
    (tmp_path / "result.json").write_text(json.dumps({"status": "completed", "error": None}))
    assert launcher._state(FORGOTTEN, tmp_path) == "completed, forgot too much"
    assert launcher._state(0, tmp_path) == "completed"


def said(**merge):
    """A result as far as these sentences read it."""
    told = measured(most=0.02).told
    return {"metric": METRIC, "forgetting": told, "merge": {"shares": {}, **merge} if merge else None}


def test_what_was_lost_is_said_with_its_interval_and_what_may_be():
    warning = forgotten.warning(said())
    assert warning.startswith(
        "**The tuned model has forgotten too much (passed: false).** On the guard set toy recall@10 "
    )
    assert "0.500 -> 0.450 (20 queries): -0.050, 95 % interval -0." in warning
    assert "max_forgetting=0.02 is the most that it may fall" in warning
    assert "merge=true" in warning
    result = {**said(), "forgetting": measured(most=0.05).told}
    assert forgotten.warning(result) == ""
    assert forgotten.findings(result).endswith("; max_forgetting=0.05 is the most that it may fall.")
    for documents, words in ((20, r"to [-+.\d]+; max"), (19, r"\(it has only 19 documents, too few to be sure\); max")):
        result["forgetting"]["delta"][METRIC]["documents"] = documents
        assert re.search(words, forgotten.findings(result))


@pytest.mark.parametrize(
    ("merge", "words"),
    [
        (
            {"chosen": 0.5, "shares": {"0.5": {"guard": 0.74}}},
            "0.5 of the weights' change is kept, the best share on dev of",
        ),
        (
            {"chosen": 0.0, "shares": {"0": {"guard": 0.75}}},
            "nothing of the weights' change is kept: no share of those",
        ),
        (
            {"chosen": 0.5, "shares": {"0.5": {"guard": 0.5}}},
            "no share loses at most 0.02 on the guard set's dev, and it",
        ),
    ],
)
def test_which_share_was_kept_is_said_with_the_reason(merge, words):
    assert words in forgotten.kept(said(**merge))


def test_a_run_that_forgets_too_much_completes_and_says_so_everywhere(embexp, sources, tmp_path):
    guard = ["guard_dataset=docstrings", "guard_dataset.packages=[json,logging,email]", "max_forgetting=0"]
    quick = ["model=static", "model.dimension=16", "trainer=smoke", "logger=none", *sources["pairs"], *guard]
    run = embexp(*quick, "trainer.learning_rate=1", "trainer.max_steps=20", "merge=[1]")
    told, result = run.result["forgetting"], run.result
    lost = told["base"]["test"][METRIC] - told["tuned"]["test"][METRIC]
    assert lost > 0
    assert (run.code, result["status"], told["passed"], told["dataset"]) == (
        FORGOTTEN,
        "completed",
        False,
        "docstrings",
    )
    assert told["delta"][METRIC]["absolute"] == pytest.approx(-lost)
    assert told["fully_tuned"] == told["tuned"]
    assert told["queries"] == {"dev": 20, "test": 24}
    assert "The tuned model has forgotten too much (passed: false). On the guard set docstrings recall@10" in run.output
    lines = (run.folder / "report.md").read_text().splitlines()
    assert lines[2].startswith("**The tuned model has forgotten too much (passed: false).**")
    assert any(line.startswith("| guard set docstrings |") for line in lines)
    assert any(line.startswith("| share of the change |") for line in lines)
    page = (run.folder / "report.html").read_text()
    assert "<strong>The tuned model has forgotten too much (passed: false).</strong>" in page
    assert "guard set docstrings" in page
    readme = (run.folder / "model" / "README.md").read_text()
    assert "The tuned model has forgotten too much" in readme
    assert "- Merged: 1 of the weights' change is kept" in readme
    summary = _summary(result)
    assert summary["guard/passed"] is False
    assert summary["guard/base/recall@10"] - summary["guard/tuned/recall@10"] == pytest.approx(lost)
    assert summary["guard/delta/recall@10"] == pytest.approx(-lost)
    assert summary["merge/share"] == 1
    again = embexp(f"resume={run.folder}")
    assert again.code == FORGOTTEN
    older = {key: value for key, value in result.items() if key not in ("forgetting", "merge", "fully_tuned")}
    assert "forgotten" not in report(older, NAMES) + at_the_end(older) + card(older, NAMES, stamped(run))


def stamped(run):
    return json.loads((run.folder / "model" / "embexp.json").read_text())


def test_a_run_that_is_killed_while_it_merges_ends_as_if_it_had_not_been(pairs, tmp_path):
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group"]
    guard = ["dataset@guard_dataset=docstrings", "guard_dataset.packages=[json,logging,email]", "max_forgetting=0.1"]
    config = configured(
        *data, *guard, "model=static", "model.dimension=16", "merge=[0.25,0.5]", "trainer.learning_rate=0.1"
    )
    assert attempt(config, tmp_path / "whole") == 0
    # the weights of the share are being written: training is over, and its checkpoint says so
    assert attempt(config, tmp_path / "run", before=partial(at_file_event, 2, where="/run/model")) < 0
    assert not (tmp_path / "run" / "result.json").exists()
    assert attempt(config, tmp_path / "run") == 0
    assert Ending.of(tmp_path / "run") == Ending.of(tmp_path / "whole")
