"""Run folders as they are found: whole, broken, foreign."""

from __future__ import annotations

import json

import pytest

from embexp.errors import UserError
from embexp.results import runs
from tests.folders import run_folder


def test_runs_are_found_at_any_depth_and_not_inside_one_another(tmp_path):
    for name in ("outputs/day/1", "multirun/mnrl/10", "multirun/mnrl/2", "multirun/model/0", "figures/1"):
        run_folder(tmp_path / name)
    run_folder(tmp_path / "outputs" / "day" / "1" / "model")  # nobody looks there
    (tmp_path / "empty").mkdir()
    found = [str(folder.relative_to(tmp_path)) for folder in runs.find(tmp_path)]
    assert found == ["figures/1", "multirun/mnrl/10", "multirun/mnrl/2", "multirun/model/0", "outputs/day/1"]
    assert list(runs.find(tmp_path / "outputs" / "day" / "1")) == [tmp_path / "outputs" / "day" / "1"]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        list(runs.find(tmp_path / "nowhere"))


def test_a_run_without_a_result_is_unfinished_and_its_config_is_known(tmp_path):
    run = runs.read(run_folder(tmp_path / "run", status=None, names={"loss": "triplet"}, learning_rate=0.1))
    assert (run.status, run.result, run.names["loss"]) == ("unfinished", None, "triplet")
    assert run.config["trainer"]["learning_rate"] == 0.1
    assert run.score("dev", "recall@10") is None


def test_an_older_result_takes_its_names_from_hydra(tmp_path):
    folder = run_folder(tmp_path / "run", names={"model": "mpnet"})
    result = json.loads((folder / "result.json").read_text())
    del result["names"]
    (folder / "result.json").write_text(json.dumps(result))
    assert runs.read(folder).names == {"loss": "mnrl", "model": "mpnet", "dataset": "pairs"}


def test_scores_are_the_tuned_models_or_the_bases_where_there_is_none(tmp_path):
    run = runs.read(run_folder(tmp_path / "a", dev=0.7, test=None))
    assert (run.score("dev", "recall@10"), run.score("test", "recall@10")) == (0.7, None)
    assert run.score("dev", "recall@10", arm="bm25") == 0.2
    assert run.score("dev", "nothing@10") is None
    assert runs.read(run_folder(tmp_path / "b", tuned=None)).score("dev", "recall@10") == 0.3


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("result.json", '{"status": "comp', "result.json can't be read"),
        ("result.json", "[1]", "is not a result of embexp"),
        ("result.json", '{"status": "completed"}', "it has no error, metric, base"),
        (".hydra/hydra.yaml", "hydra: {a", "hydra.yaml can't be read"),
        (".hydra/hydra.yaml", "", "hydra.yaml is empty or no config"),
        (".hydra/config.yaml", "miner: x", "is a data set that was mined"),
        (".hydra/config.yaml", "lr: 1", "is no run of embexp"),
        (".hydra/config.yaml", '{"metric": "recall@10", "evaluator": {}}', "it has no seed, limit, dataset"),
    ],
)
def test_a_broken_or_foreign_folder_says_what_is_wrong(tmp_path, file, content, words):
    folder = run_folder(tmp_path / "run", status=None)
    (folder / file).write_text(content)
    with pytest.raises(UserError, match="run") as refused:
        runs.read(folder)
    assert words in str(refused.value)


@pytest.mark.parametrize(("key", "said"), [("notes", "notes"), ("caveat", "caveat"), ("seed", "config.seed")])
def test_a_result_without_a_key_that_pages_and_comparisons_read_is_broken_by_name(tmp_path, key, said):
    folder = run_folder(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    del (result["config"] if "." in said else result)[key]
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=f"is not a result of embexp: it has no {said}$"):
        runs.read(folder)


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path):
    folder = run_folder(tmp_path / "run", status=None)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/lo')
    assert [step["step"] for step in runs.read(folder).steps()] == [0, 1]
    (folder / "metrics.jsonl").unlink()
    assert runs.read(folder).steps() == []
