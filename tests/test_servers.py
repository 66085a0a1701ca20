"""The servers of tests/servers.py answer, as a sweep will ask them. Alone:

python -m pytest -m real_server tests/test_servers.py
"""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import servers
from tests.servers import NotInstalled, postgresql, slurm


@pytest.fixture
def executor(started, monkeypatch, tmp_path):
    """submitit's way to the running SLURM."""
    import submitit

    for name, value in started.items():
        monkeypatch.setenv(name, value)
    return submitit.AutoExecutor(tmp_path / "%j", cluster="slurm")


def gone(job_id: str) -> bool:
    """Whether SLURM's queue no longer has the job. squeue, because sacct and submitit's done() need accounting."""
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job_id}"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode and "Invalid job id" not in asked.stderr:  # which it says of a job that it has forgotten
        raise RuntimeError(asked.stderr)
    return not asked.stdout.strip()


def state(job_id: str) -> str:
    command = ["squeue", "--noheader", "--format=%T", "--states=all", f"--jobs={job_id}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def within(seconds: float, condition) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.real_server
def test_postgresql_answers_its_user(database):
    import psycopg

    with psycopg.connect(database.url_with_password.replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT current_user, 6 * 7").fetchone() == (database.user, 42)


@pytest.mark.real_server
def test_postgresql_asks_for_the_password_and_finds_it_in_the_file(database, monkeypatch):
    import psycopg

    url = database.url.replace("+psycopg", "")
    monkeypatch.setenv("PGPASSFILE", os.devnull)
    monkeypatch.delenv("PGPASSWORD", raising=False)
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(url)
    monkeypatch.setenv("PGPASSFILE", database.environment["PGPASSFILE"])
    psycopg.connect(url).close()


@pytest.mark.real_server
def test_an_optuna_study_in_postgresql_is_read_through_another_storage(database):
    optuna = pytest.importorskip("optuna", reason="optuna is not installed")

    study = optuna.create_study(storage=database.url_with_password, study_name="a study")
    study.optimize(lambda trial: trial.suggest_int("x", 3, 3) ** 2, n_trials=2)
    read = optuna.load_study(storage=optuna.storages.RDBStorage(database.url_with_password), study_name="a study")
    assert [trial.value for trial in read.trials] == [9, 9]


@pytest.mark.real_server
def test_postgresql_stops_and_starts_again(tmp_path):
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    urls = []
    for _ in range(2):
        try:
            with postgresql(tmp_path) as server:
                urls.append(server.url_with_password.replace("+psycopg", ""))
                client = psycopg.connect(urls[-1])  # a client that stays does not keep it running
        except NotInstalled as error:
            pytest.skip(str(error))
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")
    for url in urls:
        with pytest.raises(psycopg.OperationalError, match="refused"):
            psycopg.connect(url)


@pytest.mark.real_server
def test_slurm_runs_a_job_of_submitit(executor):
    assert executor.submit(operator.mul, 6, 7).result() == 42


@pytest.mark.real_server
def test_slurm_runs_two_jobs_at_a_time(executor):
    jobs = [executor.submit(time.sleep, 30).job_id for _ in range(2)]
    assert within(20, lambda: [state(job) for job in jobs] == ["RUNNING", "RUNNING"])
    subprocess.run(["scancel", *jobs], check=True)
    assert within(20, lambda: all(gone(job) for job in jobs))


@pytest.mark.real_server
def test_a_cancelled_job_is_gone_whether_it_ran_or_waited(executor):
    executor.update_parameters(slurm_exclusive=True)
    runs, waits = [executor.submit(time.sleep, 60) for _ in range(2)]
    assert within(20, lambda: state(runs.job_id) == "RUNNING")
    assert state(waits.job_id) == "PENDING"
    assert not gone(runs.job_id)
    assert not gone(waits.job_id)
    waits.cancel()
    assert within(5, lambda: gone(waits.job_id))
    runs.cancel()
    assert within(20, lambda: gone(runs.job_id))  # submitit ignores SIGTERM, so that SLURM kills it after KillWait
    assert not runs.done(force_check=True)  # submitit cannot tell


@pytest.mark.real_server
def test_a_job_that_slurm_has_forgotten_or_never_had_is_gone(executor):
    assert gone("123456")


@pytest.mark.real_server
def test_slurm_stops_with_its_jobs_and_starts_again(tmp_path):
    names = ("munged", "slurmctld", "slurmd")
    for controller_is_killed in (True, False):
        try:
            with slurm(tmp_path) as environment:
                pids = [int((tmp_path / f"{name}.pid").read_text()) for name in names]
                job = f"--wrap=srun sh -c 'echo $$ > {tmp_path}/job.pid; exec sleep 60'"
                subprocess.run(["sbatch", "--output=/dev/null", job], env=os.environ | environment, check=True)
                assert within(20, lambda: (tmp_path / "job.pid").exists() and (tmp_path / "job.pid").read_text())
                if controller_is_killed:
                    os.kill(pids[1], signal.SIGKILL)
        except NotInstalled as error:
            pytest.skip(str(error))
        pids.append(int((tmp_path / "job.pid").read_text()))
        assert within(5, lambda pids=pids: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])
        (tmp_path / "job.pid").unlink()


def test_missing_programs_are_named_with_their_packages():
    command = [sys.executable, servers.__file__, "slurm"]
    ended = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert "squeue" in ended.stderr
    assert "apt-get install --no-install-recommends slurm-wlm munge" in ended.stderr
