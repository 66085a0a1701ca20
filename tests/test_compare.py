"""`python -m embexp.compare`: who is ranked against whom, by what, and how sure that is."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embexp.compare import cli, shown
from embexp.compare.collected import collect, filtered
from embexp.compare.coordinates import Axis, parallel
from embexp.compare.groups import Spread, boards
from embexp.compare.pairs import difference, holm, pair, pairs
from embexp.errors import UserError
from embexp.evaluation.significance import Scores, compare
from embexp.results import runs
from tests.folders import per_query, run_folder


def read_all(*folders):
    return [runs.read(folder) for folder in folders]


def called(monkeypatch, capsys, *arguments):
    """Exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_runs_that_differ_by_seed_alone_are_one_line_with_mean_and_deviation(tmp_path):
    folders = [run_folder(tmp_path / str(seed), seed=seed, dev=dev) for seed, dev in ((1, 0.5), (2, 0.7), (3, 0.6))]
    other = run_folder(tmp_path / "other", seed=1, dev=0.55, learning_rate=1e-3)
    (board,) = boards(read_all(*folders, other), metric=None)
    assert [(group.number, len(group.runs)) for group in board.groups] == [(1, 3), (2, 1)]
    assert board.groups[0].dev.mean == pytest.approx(0.6)
    assert board.groups[0].dev.deviation == pytest.approx(0.1)  # of 0.5, 0.6, 0.7 by n - 1
    assert board.varied == ["trainer.learning_rate"]
    first = dict(zip(*(lambda table: (table.header, table.lines[0]))(shown.ranking(board)), strict=True))
    assert first == {
        "#": "1", "loss": "mnrl", "model": "static", "learning_rate": "2e-05", "seeds": "3", "dev": "0.600 ± 0.100",
        "test": "0.600 ± 0.000", "delta on test": "+0.200 ± 0.000", "verdict": "better", "s": "7",
    }  # fmt: skip


def test_dev_ranks_whatever_test_says(tmp_path):
    low = run_folder(tmp_path / "a", dev=0.5, test=0.9, names={"loss": "triplet"})
    high = run_folder(tmp_path / "b", dev=0.6, test=0.4)
    (board,) = boards(read_all(low, high), metric=None)
    assert [group.runs[0].folder.name for group in board.groups] == ["b", "a"]


def test_runs_on_other_data_or_by_another_metric_stand_on_another_board(tmp_path):
    folders = [
        run_folder(tmp_path / "a"), run_folder(tmp_path / "b", data="b"), run_folder(tmp_path / "c", seed=3, data="b"),
        run_folder(tmp_path / "d", learning_rate=1.0),
    ]  # fmt: skip
    found = boards(read_all(*folders), metric=None)
    assert [[run.folder.name for group in board.groups for run in group.runs] for board in found] == [
        ["a", "d"],
        ["b", "c"],
    ]
    assert [board.title for board in found] == ["pairs (1): recall@10", "pairs (2): recall@10"]
    assert [board.metric for board in boards(read_all(folders[0]), metric="ndcg@10")] == ["ndcg@10"]
    assert boards(read_all(folders[0]), metric="nothing@1") == []


def test_the_same_config_on_other_base_weights_is_another_setting(tmp_path):
    folders = [run_folder(tmp_path / name) for name in "ab"]
    result = json.loads((folders[1] / "result.json").read_text())
    result["fingerprint"]["model"]["content"] = "other weights"
    (folders[1] / "result.json").write_text(json.dumps(result))
    (board,) = boards(read_all(*folders), metric=None)
    assert len(board.groups) == 2


def changed(folder, **keys):
    """The folder, with these keys of its result.json instead."""
    file = folder / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return folder


def test_an_arm_has_its_interval_in_one_run_and_its_spread_over_several(tmp_path):
    def arm(difference):
        delta = {"absolute": difference, "ci_low": difference - 0.1, "ci_high": difference + 0.1, "documents": 40}
        scores = {"recall@10": 0.5 + difference}
        return {"dev": scores, "test": scores, "delta": {"recall@10": delta} if difference else None}

    def shown_of(*gains):
        folders = [
            changed(
                run_folder(tmp_path / f"{len(gains)}-{seed}", seed=seed),
                arms={"base": arm(0), "hybrid_tuned": arm(gain)}, arms_verdict={"cheapest": "hybrid_tuned"},
            )
            for seed, gain in enumerate(gains)
        ]  # fmt: skip
        (board,) = boards(read_all(*folders), metric=None)
        table = shown.arms_table(board)
        return {line[1]: line[table.header.index("minus base")] for line in table.lines}

    assert list(shown_of(0.2).values()) == ["-", "+0.200 (+0.100 to +0.300)"]
    assert list(shown_of(0.1, 0.3).values()) == ["-", "+0.200 ± 0.141"]  # of 0.1 and 0.3 by n - 1


def test_an_arm_that_a_metric_says_nothing_of_has_dashes(tmp_path):
    delta = {"absolute": 0.25, "ci_low": 0.125, "ci_high": 0.375, "documents": 20}

    def arm(**scores):
        shared = {"recall@10": 0.5} | scores
        return {"dev": shared, "test": shared, "delta": dict.fromkeys(shared, delta)}

    base = arm(**{"dim64.recall@10": 0.25}) | {"delta": None}
    arms = {"bm25": arm(), "base": base, "tuned": arm(**{"dim64.recall@10": 0.5})}

    def folder(seed):
        folder = run_folder(tmp_path / str(seed), seed=seed)
        tuned = {"dev": arms["tuned"]["dev"], "test": arms["tuned"]["test"]}
        return changed(folder, arms=arms, tuned=tuned, arms_verdict={"cheapest": "tuned"})

    def lines(*folders):
        (board,) = boards(read_all(*folders), metric="dim64.recall@10")
        assert "dim64.recall@10" in shown.text([board], {board.title: ([], [])}, [])
        table = shown.arms_table(board)
        assert table.header[3:6] == ["dev", "test", "minus base"]
        return [line[3:6] for line in table.lines]

    one, several = lines(folder(1)), lines(folder(2), folder(3))
    assert one == [["-"] * 3, ["0.250", "0.250", "-"], ["0.500", "0.500", "+0.250 (+0.125 to +0.375)"]]
    assert several == [["-"] * 3, ["0.250", "0.250", "-"], ["0.500", "0.500", "+0.250 ± 0.000"]]


def test_the_same_config_on_other_training_data_is_another_setting_and_the_data_are_what_differs(tmp_path):
    folders = [run_folder(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    found = json.loads((folders[1] / "result.json").read_text())["fingerprint"]
    changed(folders[1], fingerprint=found | {"train": "0123456789abcdef"})
    (board,) = boards(read_all(*folders), metric=None)
    assert [len(group.runs) for group in board.groups] == [1, 1]
    assert board.varied == ["train data"]
    assert {group.varied["train data"] for group in board.groups} == {"train", "01234567"}
    assert "train data" in shown.ranking(board).header


def test_repeats_of_a_seed_count_once_the_newest_and_are_counted_apart(tmp_path, monkeypatch, capsys):
    for place, (name, seed, dev) in enumerate((("new", 1, 0.5), ("old", 1, 0.9), ("older", 1, 0.1), ("two", 2, 0.7))):
        file = run_folder(tmp_path / name, seed=seed, dev=dev) / "result.json"
        os.utime(file, (1000 - place, 1000 - place))
    run_folder(tmp_path / "trial", seed=1, dev=0.8, test=None)  # the newest, and without a score on test
    (board,) = boards(read_all(*(tmp_path / name for name in ("old", "older", "new", "two", "trial"))), metric=None)
    (group,) = board.groups
    assert [run.folder.name for run in group.runs] == ["new", "two"]
    assert {run.folder.name for run in group.repeats} == {"old", "older", "trial"}
    assert group.dev.mean == pytest.approx(0.6)  # of 0.5 and 0.7
    assert "3 repeats of a seed left out" in shown.beside(board)
    monkeypatch.chdir(tmp_path)
    assert "not ranked" not in called(monkeypatch, capsys, ".")[1]
    rows = csv.DictReader(io.StringIO(called(monkeypatch, capsys, ".", "--csv")[1]))
    assert [(row["folder"], row["place"]) for row in rows][:2] == [("new", "1"), ("two", "1")]


def test_a_caveat_stars_the_verdict_and_is_said_below_as_are_notes(tmp_path, monkeypatch, capsys):
    run_folder(tmp_path / "a", caveat="as published, with leaks", notes=["its steps were too small"])
    run_folder(tmp_path / "b", dev=0.4, learning_rate=1.0)
    monkeypatch.chdir(tmp_path)
    _, out, _ = called(monkeypatch, capsys, ".")
    assert [line.split("|")[-3].strip() for line in out.splitlines() if line.startswith(("| 1 ", "| 2 "))] == [
        "better*",
        "better",
    ]
    assert "\n\\* as published, with leaks\n" in out
    assert "\nNote on #1: its steps were too small.\n" in out
    page = (tmp_path / "compare.html").read_text()
    assert '<p class="small">* as published, with leaks</p>' in page
    assert '["caveat","text"]' in page
    rows = list(csv.DictReader(io.StringIO(called(monkeypatch, capsys, ".", "--csv")[1])))
    assert [(row["caveat"], row["notes"]) for row in rows] == [
        ("as published, with leaks", "its steps were too small"),
        ("", ""),
    ]


def test_the_queries_of_test_are_counted_without_paraphrases(tmp_path):
    folder = run_folder(tmp_path / "a")
    counts = json.loads((folder / "result.json").read_text())["counts"]
    (board,) = boards(read_all(changed(folder, counts=counts | {"slices": {"paraphrase": 7}})), metric=None)
    assert board.queries == {"dev": 20, "test": 33}


def test_keys_that_follow_from_the_choice_of_a_loss_are_no_column(tmp_path):
    folders = [run_folder(tmp_path / name, names={"loss": name}) for name in ("mnrl", "triplet")]
    for folder, loss in zip(folders, ({"scale": 20.0}, {"margin": 5}), strict=True):
        result = json.loads((folder / "result.json").read_text())
        result["config"]["loss"] = loss
        (folder / "result.json").write_text(json.dumps(result))
    (board,) = boards(read_all(*folders), metric=None)
    assert board.varied == []
    assert [table.header[0] for table in shown.by_choice(board)] == ["by loss"]


def test_a_spread_is_over_what_there_is():
    assert Spread.of([None, 1.0, 3.0]) == Spread(2.0, pytest.approx(2**0.5))
    assert Spread.of([1.0]) == Spread(1.0, None)
    assert Spread.of([None]) is None


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (["loss=mnrl"], ["a", "b"]),
        (["loss=mnrl,triplet"], ["a", "b", "c"]),
        (["trainer.learning_rate=2e-5"], ["a", "c"]),
        (["trainer.learning_rate=0.00002", "loss=mnrl"], ["a"]),
        (["status=completed"], ["a", "c"]),
        (["limit=null"], ["a", "b", "c"]),
        (["debug=false", "seed=0"], ["a", "b", "c"]),
    ],
)
def test_filters_keep_what_passes_all_of_them(tmp_path, filters, kept):
    folders = [
        run_folder(tmp_path / "a"), run_folder(tmp_path / "b", learning_rate=0.1, status="failed"),
        run_folder(tmp_path / "c", names={"loss": "triplet"}),
    ]  # fmt: skip
    assert [run.folder.name for run in filtered(read_all(*folders), filters)] == kept


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("trainer.learning_rat=1", "did you mean trainer.learning_rate?"),
        ("loss=mnlr", "there is loss=mnrl"),
    ],
)
def test_a_filter_that_no_run_can_pass_is_refused(tmp_path, word, words):
    with pytest.raises(UserError) as refused:
        filtered(read_all(run_folder(tmp_path / "a")), [word])
    assert words in str(refused.value)


def test_broken_and_foreign_folders_are_named_and_the_others_compared(tmp_path, monkeypatch, capsys):
    run_folder(tmp_path / "good")
    (run_folder(tmp_path / "torn") / "result.json").write_text("{")
    run_folder(tmp_path / "failed", status="failed")
    run_folder(tmp_path / "going", status=None)
    (tmp_path / "foreign" / ".hydra").mkdir(parents=True)
    code, out, err = called(monkeypatch, capsys, tmp_path, "--out", tmp_path / "page.html")
    assert code == 0
    assert "| 1 | mnrl | static |" in out
    assert "it failed, said line one" in out
    assert "line two" not in out
    assert "it is running, or was ended from outside" in out
    assert "torn/result.json can't be read" in err
    assert "foreign has no result.json" in err
    text = (tmp_path / "page.html").read_text()
    assert "torn/result.json" in text
    assert "Not ranked" in text


def test_the_usual_folders_are_taken_where_none_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = called(monkeypatch, capsys)
    assert (code, err) == (1, "embexp: name the folders of runs to compare; there is no outputs and no multirun here\n")
    run_folder(tmp_path / "outputs" / "day" / "1")
    code, out, _ = called(monkeypatch, capsys)
    assert code == 0
    assert "page: compare.html" in out
    assert called(monkeypatch, capsys, "outputs", "--metric", "hits@3") == (
        1, "", "embexp: --metric hits@3: no run has it on dev or test; there are mrr@100, ndcg@1, ndcg@10, recall@1, "
        "recall@10\n",
    )  # fmt: skip
    assert called(monkeypatch, capsys, "outputs", "--out", "no/where.html")[0] == 1


def test_a_run_named_twice_counts_once(tmp_path):
    folder = run_folder(tmp_path / "a")
    assert len(collect([str(tmp_path), str(folder)]).runs) == 1


def test_a_pair_is_the_paired_bootstrap_of_its_queries(tmp_path):
    rng = np.random.default_rng(0)
    tuned = [rng.integers(0, 2, 80).astype(float) for _ in range(2)]
    folders = [run_folder(tmp_path / str(n), scores=per_query([0.0] * 80, values)) for n, values in enumerate(tuned)]
    ids = [f"q{n}" for n in range(80)]
    order = sorted(range(80), key=lambda n: ids[n])
    scores = [{"recall@10": Scores([ids[n] for n in order], values=values[order])} for values in tuned]
    expected = compare(*scores, document_of={name: f"d{n // 2}" for n, name in enumerate(ids)})["recall@10"]
    assert pair(*read_all(*folders), metric="recall@10") == expected
    assert expected.documents == 40


def test_a_base_model_without_training_stands_in_a_pair_as_itself(tmp_path):
    trained = run_folder(tmp_path / "a", scores=per_query([0.0] * 60, [1.0] * 60))
    base = run_folder(tmp_path / "b", tuned=None, delta=None, verdict=None, scores=per_query([0.5] * 60, [0.0] * 60))
    assert pair(*read_all(base, trained), metric="recall@10").absolute == 0.5


def test_seeds_are_compared_by_their_mean_per_query(tmp_path):
    one = [run_folder(tmp_path / f"a{n}", seed=n, scores=per_query([0.0] * 60, [n] * 60)) for n in (0, 1)]
    other = run_folder(tmp_path / "b", dev=0.4, learning_rate=1.0, scores=per_query([0.0] * 60, [1.0] * 60))
    (board,) = boards(read_all(*one, other), metric=None)
    (only,), missing = pairs(board)
    assert (only.first.number, only.second.number, only.delta.absolute, missing) == (1, 2, 0.5, [])
    assert only.verdict == "better"


def test_a_trial_beside_its_confirmation_is_left_out_of_the_pair(tmp_path):
    confirmed = run_folder(tmp_path / "a", seed=1, scores=per_query([0.0] * 60, [0.0] * 60))
    trial = run_folder(tmp_path / "b", seed=2, test=None)
    other = run_folder(tmp_path / "c", dev=0.4, learning_rate=1.0, scores=per_query([0.0] * 60, [1.0] * 60))
    (board,) = boards(read_all(confirmed, trial, other), metric=None)
    assert [len(group.runs) for group in board.groups] == [2, 1]
    assert [each.delta.absolute for each in pairs(board)[0]] == [1.0]


def test_runs_without_scores_per_query_are_named(tmp_path):
    there = run_folder(tmp_path / "a", scores=per_query([0.0] * 4, [1.0] * 4))
    bare = run_folder(tmp_path / "b", learning_rate=1.0)
    (board,) = boards(read_all(there, bare), metric=None)
    assert pairs(board) == ([], [f"{bare} is not compared query by query: per_query.parquet can't be read"])
    without = per_query([0.0] * 4, [1.0] * 4, metrics=["ndcg@10"])
    without.to_parquet(there / "retrieval" / "per_query.parquet")
    assert "recall@10 has no value per query" in pairs(board)[1][0]


def test_holm_multiplies_the_smallest_by_their_number_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 0.01 * 3, 0.03 * 2, then 0.04 is raised
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_different_test_sets_are_refused_with_what_differs(tmp_path, monkeypatch, capsys):
    one = run_folder(tmp_path / "a", data="a")
    other = run_folder(tmp_path / "b", data="b")
    code, out, err = called(monkeypatch, capsys, "--pair", one, other)
    assert (code, out) == (1, "")
    assert "the passages searched differ (fingerprint.corpus); dataset.path is a.jsonl and b.jsonl" in err

    result = json.loads((other / "result.json").read_text())
    result["fingerprint"]["corpus"] = "corpus a"
    (other / "result.json").write_text(json.dumps(result))
    assert "the questions or the qrels of test differ" in difference(*read_all(one, other), "recall@10")
    trial = run_folder(tmp_path / "t", test=None)
    assert "t has no scores on test (a trial of a sweep looks at dev alone)" in difference(
        *read_all(one, trial), "recall@10"
    )
    failed = run_folder(tmp_path / "f", status="failed")
    assert "(the run is failed)" in difference(*read_all(failed, one), "recall@10")
    assert difference(*read_all(one, one), "recall@10") == ""


def test_a_pair_is_a_sentence(tmp_path, monkeypatch, capsys):
    for name, values in (("a", [0.0] * 60), ("b", [1.0] * 60)):
        run_folder(tmp_path / name, scores=per_query([0.0] * 60, values), test=float(values[0]))
    monkeypatch.chdir(tmp_path)
    _, out, _ = called(monkeypatch, capsys, "--pair", "a", "b")
    assert out.startswith("b is better on test: recall@10 0.000 -> 1.000 (60 queries): +1.000, 95 % interval +1.000 to")
    assert "60/0/0 wins/ties/losses" in out


def test_a_metric_that_not_both_have_is_refused_with_those_that_both_have(tmp_path, monkeypatch, capsys):
    for name in "ab":
        run_folder(tmp_path / name, scores=per_query([0.0] * 60, [1.0] * 60))
    monkeypatch.chdir(tmp_path)
    code, out, err = called(monkeypatch, capsys, "--pair", "a", "b", "--metric", "nothing@3")
    assert (code, out) == (1, "")
    assert "not both have nothing@3 on test; both have recall@1, recall@10, ndcg@1, ndcg@10, mrr@100" in err


@pytest.mark.parametrize("given", ["outputs", "loss=mnrl", "--csv", "--json"])
def test_a_pair_takes_no_folders_filters_and_forms_and_says_why(tmp_path, monkeypatch, capsys, given):
    monkeypatch.chdir(tmp_path)
    code, out, err = called(monkeypatch, capsys, given, "--pair", "a", "b")
    assert (code, out) == (1, "")
    assert f"--pair compares the two runs that it names, in a sentence, and does not take {given};" in err


def test_a_pair_says_the_caveat(tmp_path, monkeypatch, capsys):
    for name in "ab":
        run_folder(tmp_path / name, scores=per_query([0.0] * 60, [1.0] * 60), caveat="with leaks")
    monkeypatch.chdir(tmp_path)
    assert called(monkeypatch, capsys, "--pair", "a", "b")[1].endswith("wins/ties/losses (with leaks)\n")


def test_csv_has_a_line_a_run_and_json_the_pairs_too(tmp_path, monkeypatch, capsys):
    scores = per_query([0.0] * 60, [1.0] * 60)
    run_folder(tmp_path / "a", test=0.9, scores=scores)
    run_folder(tmp_path / "b", dev=0.4, learning_rate=0.5, scores=scores)
    run_folder(tmp_path / "c", status="failed")
    monkeypatch.chdir(tmp_path)
    _, out, _ = called(monkeypatch, capsys, ".", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["folder"], row["place"], row["status"]) for row in rows] == [
        ("a", "1", "completed"), ("b", "2", "completed"), ("c", "", "failed"),
    ]  # fmt: skip
    assert rows[1]["trainer.learning_rate"] == "0.5"
    assert (rows[0]["base_test"], rows[0]["bm25_dev"], rows[0]["delta_absolute"]) == ("0.4", "0.2", "0.5")
    assert not (tmp_path / "compare.html").exists()
    _, out, _ = called(monkeypatch, capsys, ".", "--json")
    found = json.loads(out)
    assert [(each["first"], each["second"], each["absolute"]) for each in found["pairs"]] == [(1, 2, 0.0)]
    assert len(found["runs"]) == 3


def test_an_axis_of_wide_positive_numbers_is_logarithmic():
    axis = Axis("lr", [1e-5, 1e-3, 1e-1])
    assert [axis.place(value) for value in (1e-5, 1e-3, 1e-1)] == pytest.approx([0, 0.5, 1])
    assert Axis("scale", [10, 20, 30]).place(20) == 0.5
    assert [Axis("loss", ["b", "a"]).place(name) for name in "ab"] == [0.25, 0.75]


def test_parallel_coordinates_have_a_line_a_setting_and_too_few_have_none(tmp_path):
    folders = [run_folder(tmp_path / str(n), dev=n / 10, learning_rate=10.0**-n) for n in range(1, 5)]
    (board,) = boards(read_all(*folders), metric=None)
    drawn = parallel(board, "x")
    assert drawn.count('<path class="') == 4
    assert drawn.count('class="best"') == 1
    assert "#1: learning_rate 0.0001: 0.400" in drawn
    (board,) = boards(read_all(*folders[:3]), metric=None)
    assert parallel(board, "x") is None


def test_a_thousand_runs_take_less_than_five_seconds_of_one_core_and_no_torch(tmp_path):
    first = run_folder(tmp_path / "runs" / "0", scores=per_query([0.0] * 500, [1.0] * 500))
    text = (first / "result.json").read_text()
    for number in range(1, 1000):
        folder = tmp_path / "runs" / str(number)
        shutil.copytree(first, folder)
        (folder / "result.json").write_text(text.replace("2e-05", f"{number / 1000}"))
    code = "import sys; from embexp.compare.cli import main; main(); assert 'torch' not in sys.modules"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [sys.executable, "-c", code, "runs"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stderr
    assert "980 more are in compare.html" in ended.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert (tmp_path / "compare.html").stat().st_size < 1_000_000


def test_a_real_multirun_is_compared(embexp, sources, tmp_path, monkeypatch, capfd):
    from tests.command import QUICK

    embexp("-m", *QUICK, *sources["pairs"], "loss=mnrl,triplet", "seed=1,2", "hydra.sweep.dir=multi")
    code, out, err = called(monkeypatch, capfd, "multi")
    assert (code, err) == (0, "")
    lines = [line.split("|") for line in out.splitlines() if line.startswith(("| 1 ", "| 2 "))]
    assert sorted(line[2].strip() for line in lines) == ["mnrl", "triplet"]
    assert [line[4].strip() for line in lines] == ["2", "2"]
    assert "#2 minus #1" in out
    assert Path("compare.html").is_file()
