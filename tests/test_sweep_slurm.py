"""A sweep whose trials are jobs of a real SLURM. Alone:

python -m pytest -m real_server tests/test_sweep_slurm.py
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import optuna
import pytest

from embexp.sweep.lease import PROCESS
from embexp.sweep.reference import Address
from embexp.sweep.storage import opened
from embexp.sweep.study import DEATHS
from embexp.sweep.submitted import cores
from tests.sweeping import LONG, Sweeper, numbered

JOBS = ["hydra/launcher=submitit_slurm", "hydra.sweeper.n_jobs=2"]
CPUS = max(2, os.cpu_count() or 2)  # of the cluster's only node
WHOLE = f"hydra.launcher.cpus_per_task={CPUS}"  # so that one job runs and the other waits


@pytest.fixture
def cluster(started, monkeypatch):
    """A SLURM without jobs, which this process's commands ask too."""
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    yield started
    subprocess.run(["scancel", "--signal=KILL", "--full", "--me"], check=False)
    subprocess.run(["scancel", "--me"], check=False)


def queue(state: str = "RUNNING,PENDING,COMPLETING,SUSPENDED") -> list[str]:
    """The ids of jobs, in the order of submission."""
    command = ["squeue", "--noheader", "--format=%i", f"--states={state}", "--sort=i"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def emptied() -> bool:
    """Whether no job is left: one is still ending for a moment after the sweeper has its result."""
    end = time.monotonic() + 60
    while queue():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="test", storage=opened(Address(str(folder / "multirun" / "test"))))


@pytest.mark.real_server
def test_each_trial_is_a_job_with_the_cores_it_asked_for_and_the_winner_is_confirmed(cluster, pairs, tmp_path):
    words = [*JOBS, "hydra.sweeper.n_trials=3", "sweep.confirm_seeds=1"]
    words += [f"hydra.launcher.cpus_per_task={CPUS // 2}", "hydra.launcher.timeout_min=5"]
    sweeper = Sweeper(*words, data=pairs, folder=tmp_path, environment=cluster)
    sweeper.until(lambda: "#0 completed" in sweeper.output or "#1 completed" in sweeper.output)
    sweeper.until(lambda: "#2 starts" in sweeper.output, seconds=5)  # not when both have ended
    assert sweeper.ended() == 0, sweeper.output

    assert numbered(study_in(tmp_path)) == dict.fromkeys(range(3), "COMPLETE")
    assert len(list((sweeper.folder / ".submitit").glob("[0-9]*"))) == 4
    for trial in range(3):
        log = (sweeper.folder / str(trial) / "embexp.log").read_text()
        assert f"of the cluster: {CPUS // 2} threads" in log
    assert "trained again with other seeds; recall@10:" in (sweeper.folder / "summary.md").read_text()
    assert emptied()


@pytest.mark.real_server
def test_jobs_that_are_killed_or_cancelled_run_again_to_the_exact_total(cluster, pairs, tmp_path):
    words = [*JOBS, WHOLE, "hydra.sweeper.n_trials=2", "sweep.confirm_seeds=0", *LONG]
    sweeper = Sweeper(*words, data=pairs, folder=tmp_path, environment=cluster)
    sweeper.until(lambda: process_of(tmp_path, 0) not in (None, sweeper.process.pid))
    (waits,) = queue("PENDING")
    subprocess.run(["scancel", waits], check=True)
    os.kill(process_of(tmp_path, 0), signal.SIGKILL)
    for number in (0, 1):
        words_for_it = f"#{number} was cancelled or killed in the cluster, and runs again"
        sweeper.until(lambda words_for_it=words_for_it: words_for_it in sweeper.output)
    sweeper.until(lambda: at_work(sweeper.folder, times=2) == {"0"})
    (runs,) = queue("RUNNING")
    subprocess.run(["scancel", runs], check=True)
    sweeper.until(lambda: "#0 was interrupted" in sweeper.output)
    assert sweeper.ended() == 0, sweeper.output

    assert numbered(study_in(tmp_path)) == dict.fromkeys(range(2), "COMPLETE")
    assert sorted(path.name for path in sweeper.folder.glob("[0-9]*")) == ["0", "1"]
    assert submitted(sweeper.folder) == 5
    deaths = [trial.user_attrs.get(DEATHS, 0) for trial in study_in(tmp_path).get_trials()]
    assert deaths == [1, 1]  # an interruption is none


@pytest.mark.real_server
def test_jobs_end_with_the_sweeper_at_ctrl_c_and_without_it_when_it_is_killed(cluster, pairs, tmp_path):
    words = [*JOBS, "hydra.sweeper.n_trials=2", "sweep.confirm_seeds=0", *LONG]
    interrupted = Sweeper(*words, data=pairs, folder=tmp_path, environment=cluster)
    interrupted.until(lambda: at_work(interrupted.folder, times=1) == {"0", "1"})
    assert interrupted.interrupt() == 1
    assert "interrupted; what has ended is kept. The same command goes on" in interrupted.output
    assert set(numbered(study_in(tmp_path)).values()) == {"WAITING"}

    killed = Sweeper(*words, data=pairs, folder=tmp_path, environment=cluster)
    killed.until(lambda: at_work(killed.folder, times=2) == {"0", "1"})
    killed.kill()
    before = submitted(killed.folder)
    last = Sweeper(*words, data=pairs, folder=tmp_path, environment=cluster)
    assert last.ended() == 0, last.output

    assert submitted(last.folder) == before == 4
    assert "starts" not in last.output
    assert numbered(study_in(tmp_path)) == dict.fromkeys(range(2), "COMPLETE")
    assert emptied()


def process_of(folder: Path, number: int) -> int | None:
    """The id of the process that has the trial."""
    try:
        trial = study_in(folder).get_trials(deepcopy=False)[number]
    except (KeyError, IndexError):
        return None
    return trial.user_attrs.get(PROCESS, {}).get("pid")


def submitted(folder: Path) -> int:
    return len(list((folder / ".submitit").glob("[0-9]*")))


def at_work(folder: Path, *, times: int) -> set[str]:
    """The trials that jobs have begun that many times."""
    logs = folder.glob("[0-9]*/embexp.log")
    return {log.parent.name for log in logs if log.read_text().count("of the cluster: ") == times}


@pytest.mark.real_server
def test_a_job_that_slurm_does_not_take_ends_the_sweep_with_its_words(cluster, pairs, tmp_path):
    words = [*JOBS, "hydra.launcher.partition=nowhere", "hydra.sweeper.n_trials=2"]
    sweeper = Sweeper(*words, data=pairs, folder=tmp_path, environment=cluster)
    assert sweeper.ended() == 1
    assert "embexp: the cluster took no job" in sweeper.output
    assert "invalid partition" in sweeper.output
    assert "Traceback" not in sweeper.output
    assert numbered(study_in(tmp_path)) == {0: "WAITING"}


def test_without_slurms_programs_nothing_is_tried(embexp, monkeypatch, pairs_file, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    done = embexp(
        "-m", "sweep=custom", "model=static", "logger=none", "dataset=pairs", f"dataset.path={pairs_file}",
        "loss.scale=interval(1,2)", *JOBS,
    )  # fmt: skip
    assert done.code == 1
    assert "embexp: hydra/launcher=submitit_slurm needs SLURM's sbatch, which is not in PATH here" in done.output
    assert not (tmp_path / "multirun").exists()


def test_a_job_uses_the_cores_that_slurm_gave_it_and_no_more_than_there_are(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    assert cores() == 8
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert cores() == 4
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert cores() == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    assert cores() == 8
