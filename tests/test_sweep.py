"""A sweep end to end, by the real command: folders, pruning, confirmation, going on, refusals."""

import json
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from embexp.results.runs import leaves
from embexp.sweep.reference import Address
from embexp.sweep.storage import opened
from tests.command import separate
from tests.servers import free_port

MODEL = ["model=static", "model.dimension=16", "logger=none"]
TRAINED = ["trainer.per_device_train_batch_size=8", "trainer.num_train_epochs=2", "trainer.learning_rate=0.05"]
SEARCH = ["sampler=random", "loss.scale=tag(log,interval(0.1,5000))", "hydra.sweeper.pruner.n_startup_trials=4"]
TRIALS = 7
CUSTOM = ["-m", "sweep=custom", "sweep.name=test", *MODEL, *TRAINED]


def study_of(folder, name="test"):
    return optuna.load_study(study_name=name, storage=opened(Address(str(folder / "multirun" / "test"))))


def results_in(folder):
    return {
        file.parent.name: json.loads(file.read_text()) for file in (folder / "multirun" / "test").glob("*/result.json")
    }


@pytest.fixture(scope="module")
def data(pairs):
    return ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, data):
    """A sweep of seven trials, one at a time, its best confirmed with two seeds."""
    folder = tmp_path_factory.mktemp("swept")
    words = [*CUSTOM, *data, *SEARCH, f"hydra.sweeper.n_trials={TRIALS}", "sweep.confirm_seeds=2"]
    return folder, separate(*words, folder=folder, timeout=300), words


def test_all_trials_end_and_hopeless_ones_are_pruned(swept):
    folder, ended, _ = swept
    assert ended.returncode == 0, ended.stdout + ended.stderr
    states = [trial.state for trial in study_of(folder).get_trials()]
    assert len(states) == TRIALS
    assert states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED) == TRIALS
    assert TrialState.PRUNED in states
    by_number = {str(trial.number): trial for trial in study_of(folder).get_trials()}
    for number, result in results_in(folder).items():
        expected = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED}[result["status"]]
        assert by_number[number].state == expected


def test_a_pruned_trial_ends_early_and_says_why(swept):
    folder, _, _ = swept
    pruned = next(result for result in results_in(folder).values() if result["status"] == "pruned")
    number = next(number for number, result in results_in(folder).items() if result["status"] == "pruned")
    assert pruned["tuned"] is None
    assert "others did better" in pruned["error"]
    lines = (folder / "multirun" / "test" / number / "metrics.jsonl").read_text().splitlines()
    completed = next(number for number, result in results_in(folder).items() if result["status"] == "completed")
    all_lines = (folder / "multirun" / "test" / completed / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] < json.loads(all_lines[-1])["step"]


def test_a_trial_does_not_score_test_and_keeps_no_model_but_a_confirming_run_does(swept):
    folder, _, _ = swept
    for number, result in results_in(folder).items():
        assert result["base"]["test"] is None
        assert result["delta"] is None
        assert not (folder / "multirun" / "test" / number / "model").exists()
    confirmed = sorted((folder / "multirun" / "test").glob("confirm-*/seed-*/result.json"))
    assert [file.parent.name for file in confirmed] == ["seed-1", "seed-2"]
    for seed, file in enumerate(confirmed, start=1):
        result = json.loads(file.read_text())
        assert result["seed"] == seed
        assert result["delta"]["recall@10"]["ci_low"] is not None
        assert (file.parent / "model" / "modules.json").exists()


def test_a_trial_is_told_at_its_looks_after_equal_shares_of_an_epoch(swept):
    folder, _, _ = swept
    trial = next(each for each in study_of(folder).get_trials() if each.state == TrialState.COMPLETE)
    assert list(trial.intermediate_values) == [1, 2, 3, 4]  # two epochs, two looks in each
    logged = (folder / "multirun" / "test" / str(trial.number) / "metrics.jsonl").read_text().splitlines()
    looked = [json.loads(line) for line in logged if "dev/recall@10" in line][1:]
    assert [line["dev/recall@10"] for line in looked] == list(trial.intermediate_values.values())
    assert [round(line["epoch"], 1) for line in looked] == [0.5, 1.0, 1.5, 2.0]


def test_the_studys_value_is_the_metric_on_all_of_dev(swept):
    folder, _, _ = swept
    found = results_in(folder)
    for trial in study_of(folder).get_trials():
        if trial.state == TrialState.COMPLETE:
            assert trial.value == found[str(trial.number)]["tuned"]["dev"]["recall@10"]


def test_the_summary_ranks_by_dev_and_shows_the_confirmation_and_figures(swept):
    folder, ended, _ = swept
    summary = (folder / "multirun" / "test" / "summary.md").read_text()
    rows = [line for line in summary.splitlines() if line.startswith("| ")][1 : TRIALS + 1]
    best = study_of(folder).best_trial
    first = max(float(row.split("|")[3]) for row in rows if row.endswith("completed |"))
    assert rows[0].split("|")[1].strip() == str(best.number)
    assert float(rows[0].split("|")[3]) == first == round(best.value, 3)
    assert f"The best, #{best.number}, trained again with other seeds; recall@10:" in summary
    assert "What mattered" in summary
    result = results_in(folder)[str(best.number)]
    base, bm25 = (result[arm]["dev"]["recall@10"] for arm in ("base", "bm25"))
    assert f"Beside it, recall@10 on dev: base {base:.3f}, BM25 {bm25:.3f}." in summary
    for name in ("history", "slices", "importance"):
        assert (folder / "multirun" / "test" / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    assert "python -m embexp" in ended.stdout


def test_the_command_of_the_summary_composes_the_winners_config(swept, tmp_path):
    folder, _, _ = swept
    summary = (folder / "multirun" / "test" / "summary.md").read_text()
    command = next(line for line in summary.splitlines() if "python -m embexp" in line)
    words = shlex.split(command)[3:]
    again = separate(*words, "trainer.max_steps=1", f"hydra.run.dir={tmp_path}/run", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    best = results_in(folder)[str(study_of(folder).best_trial.number)]["config"]
    same = dict(leaves(json.loads((tmp_path / "run" / "result.json").read_text())["config"]))
    differing = {key for key, value in leaves(best) if same.get(key) != value}
    assert {key for key in differing if not key.startswith("sweep")} == set()


def test_the_same_command_has_nothing_more_to_do(swept):
    folder, _, words = swept
    before = {path: path.stat().st_mtime_ns for path in folder.glob("multirun/test/*/result.json")}
    again = separate(*words, folder=folder)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{TRIALS} of {TRIALS} trials have ended" in again.stdout
    assert "starts" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.glob("multirun/test/*/result.json")} == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("loss.scale=tag(log,interval(0.001,60))", "search space: loss.scale was 'tag(log,interval(0.1,5000.0))', now"),
        ("trainer.num_train_epochs=3", "config: trainer.num_train_epochs was 2, now 3"),
        ("metric=recall@5", "config: metric was 'recall@10', now 'recall@5'"),
        ("sweep.objectives={metric:minimize}", "objectives: metric was 'maximize', now 'minimize'"),
    ],
)
def test_what_a_study_is_about_can_not_change(swept, change, words):
    folder, _, command = swept
    kept = [word for word in command if word.partition("=")[0] != change.partition("=")[0]]
    again = separate(*kept, change, "hydra.sweeper.n_trials=9", folder=folder)
    assert again.returncode == 1
    assert words in again.stdout
    assert "another sweep.name to start afresh" in again.stdout
    assert len(study_of(folder).get_trials()) == TRIALS


def test_changed_data_are_refused(swept, pairs, tmp_path):
    folder, _, command = swept
    changed = tmp_path / "changed.jsonl"
    changed.write_text(pairs.read_text().replace("where can one find", "where is"))
    text = pairs.read_text()
    pairs.write_text(changed.read_text())  # the same path
    try:
        again = separate(*command, "hydra.sweeper.n_trials=9", folder=folder)
    finally:
        pairs.write_text(text)
    assert again.returncode == 1
    assert "data: train was" in again.stdout


def test_a_larger_total_goes_on_and_a_folder_is_never_overwritten(swept):
    folder, _, words = swept
    taken = folder / "multirun" / "test" / str(TRIALS)
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    command = [*words, f"hydra.sweeper.n_trials={TRIALS + 1}", "sweep.confirm_seeds=0"]
    refused = separate(*command, folder=folder)
    assert refused.returncode == 1
    assert "holds a run that the study" in refused.stdout
    (taken / "notes.txt").unlink()
    went_on = separate(*command, folder=folder)
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    assert sorted(trial.number for trial in study_of(folder).get_trials()) == list(range(TRIALS + 1))


def test_a_configuration_that_cannot_train_is_a_failed_trial_with_its_reason(tmp_path, data):
    search = ["trainer.learning_rate=choice(0.05,1e30)", "sampler=random", "pruner=none", "sweep.confirm_seeds=0"]
    ended = separate(*CUSTOM[:-1], *data, *search, "hydra.sweeper.n_trials=4", folder=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    failed = [trial for trial in study_of(tmp_path).get_trials() if trial.state == TrialState.FAIL]
    assert 0 < len(failed) < 4
    assert "training diverged" in failed[0].user_attrs["reason"]
    assert "failed: training diverged" in (tmp_path / "multirun" / "test" / "summary.md").read_text()


def test_a_sweep_in_which_most_trials_fail_stops_and_says_why(tmp_path, data):
    search = ["trainer.learning_rate=choice(1e30,2e30)", "sampler=random"]
    ended = separate(*CUSTOM[:-1], *data, *search, "hydra.sweeper.n_trials=20", folder=tmp_path)
    assert ended.returncode == 1
    assert "5 of 5 trials failed" in ended.stdout
    assert "training diverged" in ended.stdout
    assert len(study_of(tmp_path).get_trials()) == 5


def test_several_objectives_give_a_front_of_trials(tmp_path, data):
    ended = separate(
        "-m", "sweep=dimensions", "sweep.name=test", *MODEL, *TRAINED, *data, "loss.dims=[8,4]", "sampler=random",
        "metric=dim4.recall@10,dim8.recall@10,recall@10", "hydra.sweeper.n_trials=5", "sweep.confirm_seeds=0",
        folder=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    trials = study_of(tmp_path).get_trials()
    dims = {"dim4.recall@10": 4, "dim8.recall@10": 8, "recall@10": 16}
    for trial in trials:
        result = results_in(tmp_path)[str(trial.number)]
        assert trial.values == [result["tuned"]["dev"][result["metric"]], dims[result["metric"]]]
    front = {trial.number for trial in study_of(tmp_path).best_trials}
    shown = ended.stdout.partition("Pareto front")[2].partition("| trial |")[2].partition("\n\n")[0].splitlines()[2:]
    assert {int(line.split("|")[1]) for line in shown} == front


def test_more_confirming_seeds_are_added_to_those_that_are_there(swept):
    folder, _, words = swept
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("multirun/test/confirm-*/*/result.json")}
    command = [word for word in words if not word.startswith(("sweep.confirm_seeds", "hydra.sweeper.n_trials"))]
    total = len(study_of(folder).get_trials())
    ended = separate(*command, f"hydra.sweeper.n_trials={total}", "sweep.confirm_seeds=3", folder=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    best = study_of(folder).best_trial.number
    seeds = sorted(path.parent.name for path in folder.glob(f"multirun/test/confirm-{best}/*/result.json"))
    assert seeds == ["seed-1", "seed-2", "seed-3"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_confirmation_never_takes_over_a_run_of_another_study(swept, tmp_path, data):
    folder, _, _ = swept
    (old,) = list(folder.glob("multirun/test/confirm-*"))[:1]
    shutil.copytree(old, tmp_path / "multirun" / "test" / "confirm-0")
    search = ["sampler=random", "loss.scale=interval(1,2)", "hydra.sweeper.n_trials=1", "sweep.confirm_seeds=1"]
    ended = separate(*CUSTOM, *data, *search, folder=tmp_path)
    assert ended.returncode == 1
    assert "holds a run of another study: loss.scale was" in ended.stdout


def test_a_study_holds_what_stands_under_a_searched_group_too(tmp_path, data):
    search = ["loss=mnrl,symmetric_mnrl", "pruner=none", "sweep.objectives={training_seconds:minimize}", "limit=20"]
    words = [*CUSTOM, *data, *search, "hydra.sweeper.n_trials=1", "sweep.confirm_seeds=0"]
    first = separate(*words, "loss.scale=20", folder=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    (trial,) = study_of(tmp_path).get_trials()
    assert trial.value == results_in(tmp_path)["0"]["seconds"]["training"]
    other = separate(*words, "loss.scale=45", folder=tmp_path)
    assert other.returncode == 1
    assert "config: loss.scale with loss=mnrl was 20, now 45" in other.stdout


@pytest.mark.real_server
def test_optuna_dashboard_shows_the_study(swept):
    folder, _, _ = swept
    program = Path(sys.executable).with_name("optuna-dashboard")
    if not program.exists():
        pytest.skip("optuna-dashboard is not installed")
    port = free_port()
    command = [program, folder / "multirun" / "test" / "study.journal", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=10) as answer:
                    shown = json.load(answer)["study_summaries"]
                break
            except OSError:  # not listening yet
                assert time.monotonic() < end
                time.sleep(0.2)
    finally:
        server.kill()
        server.wait()
    assert "test" in {study["study_name"] for study in shown}
