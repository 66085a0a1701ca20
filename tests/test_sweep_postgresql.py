"""A study that several machines share through a real PostgreSQL. Alone:

python -m pytest -m real_server tests/test_sweep_postgresql.py
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from embexp.errors import UserError
from embexp.sweep.reference import Address
from embexp.sweep.storage import opened, patiently
from tests.sweeping import LONG, Sweeper, numbered

VARIABLE = "SWEEP_DATABASE"


@pytest.fixture
def studies(database, monkeypatch):
    """The database's address without a password; it is empty, and PGPASSFILE has the password."""
    psycopg = pytest.importorskip("psycopg")
    monkeypatch.setenv("PGPASSFILE", database.environment["PGPASSFILE"])
    url = database.url.replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return url


def with_password(url, database):
    return url.replace(f"{database.user}@", f"{database.user}:{database.password}@")


def study_of(url):
    return optuna.load_study(study_name="test", storage=opened(Address("", url)))


def other_machine():
    """What a command starts with to be on another machine, as far as leases can tell: its processes have own numbers.

    Killed, it takes all of its processes with it."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid():
        command[1:1] = ["--user", "--map-root-user"]
    with contextlib.suppress(FileNotFoundError):
        if not subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
            return command
    pytest.skip("unshare makes no namespace for processes here")


@pytest.mark.real_server
def test_two_sweepers_share_a_total_and_the_password_is_nowhere(database, studies, pairs, tmp_path):
    words = [f"sweep.storage_env={VARIABLE}", "hydra.sweeper.n_trials=3", "sweep.confirm_seeds=1"]
    environment = {VARIABLE: with_password(studies, database), "PGPASSFILE": os.devnull}
    sweepers = [Sweeper(*words, data=pairs, folder=tmp_path / name, environment=environment) for name in ("one", "two")]

    assert [sweeper.ended() for sweeper in sweepers] == [0, 0], [sweeper.output for sweeper in sweepers]

    study = study_of(studies)
    assert numbered(study) == dict.fromkeys(range(3), "COMPLETE")
    ran = [{path.parent.name for path in sweeper.folder.glob("[0-9]*/result.json")} for sweeper in sweepers]
    assert ran[0] | ran[1] == set("012")
    assert not ran[0] & ran[1]
    assert ran[0]
    assert ran[1]
    summaries = [(sweeper.folder / "summary.md").read_text() for sweeper in sweepers]
    assert summaries[0] == summaries[1].replace("/two/", "/one/")
    assert sum(f"#confirm-{best}/seed-1 starts" in s.output for best in "012" for s in sweepers) == 1
    assert not holding(database.password, tmp_path)


@pytest.mark.real_server
def test_a_machine_that_dies_leaves_its_trial_to_another(database, studies, pairs, tmp_path):
    words = [
        f"sweep.storage={studies}",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.lease=6",
        "sweep.confirm_seeds=0",
        *LONG,
    ]
    dies = Sweeper(*words, data=pairs, folder=tmp_path / "dies", environment={}, under=other_machine())
    dies.until(lambda: dies.trains(0))
    dies.kill()
    assert numbered(study_of(studies))[0] == "RUNNING"
    lives = Sweeper(*words, data=pairs, folder=tmp_path / "lives", environment={})
    assert lives.ended() == 0, lives.output

    assert numbered(study_of(studies)) == dict.fromkeys(range(2), "COMPLETE")
    told = ["#1 starts", "#0 was left by a process that is gone, and runs again", "#0 starts"]
    assert sorted(told, key=lives.output.index) == told
    assert (lives.folder / "0" / "result.json").exists()
    assert not (dies.folder / "0" / "result.json").exists()


@pytest.mark.real_server
def test_trials_go_on_when_postgresql_is_started_again(database, studies, pairs, tmp_path):
    words = [f"sweep.storage={studies}", "hydra.sweeper.n_trials=2", "sweep.confirm_seeds=0", *LONG]
    sweeper = Sweeper(*words, data=pairs, folder=tmp_path, environment={})
    try:
        sweeper.until(lambda: sweeper.trains(0))
        database.stop()
        time.sleep(3)
    finally:
        database.start()

    assert sweeper.ended() == 0, sweeper.output

    assert "the database does not answer; trying again for 300 s" in sweeper.output
    assert numbered(study_of(studies)) == dict.fromkeys(range(2), "COMPLETE")
    assert "0 was left" not in sweeper.output


@pytest.mark.real_server
def test_tables_that_several_make_at_once_are_whole(studies):
    code = f"""if True:
        import time
        from embexp.sweep.reference import Address
        from embexp.sweep.storage import opened
        while time.time() < {time.time() + 8}: pass
        opened(Address("", {studies!r}))"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0)] * 3


@pytest.mark.real_server
@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_an_address_may_name_the_driver_or_not(studies, scheme):
    assert opened(Address("", f"{scheme}://{studies.partition('://')[2]}")).get_all_studies() == []


@pytest.mark.real_server
def test_what_holds_the_lock_may_be_killed(studies):
    code = f"""if True:
        import time
        from embexp.sweep.reference import Address
        from embexp.sweep.storage import alone, opened
        address = Address("", {studies!r})
        with alone(address, opened(address), "test"):
            print("locked", flush=True)
            time.sleep(60)"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"locked\n"
    waits = code.replace("time.sleep(60)", "pass")
    waiter = subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        waiter.wait(5)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert waiter.communicate(timeout=30)[0] == b"locked\n"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("postgresql://me:{}@127.0.0.1:1/db", "the database can't be reached (connection failed"),
        ("postgresql://me:{}@host.invalid/db", "the database can't be reached"),
        ("postgresql://me:{}", "can't be read as an address; write it as postgresql://user:password@host"),
        ("postgresql://me:{}@{}/x@127.0.0.1:1/db", "write an @ in the password as %40"),
        ("mysql://me:{}@127.0.0.1/db", "an address starts with postgresql://"),
        ("", "there is no such environment variable"),
    ],
)
def test_an_address_that_does_not_work_is_told_before_any_trial_without_the_password(
    embexp, monkeypatch, pairs_file, tmp_path, address, words
):
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    monkeypatch.setenv(VARIABLE, address.replace("{}", "canary"))
    done = embexp(
        "-m", "sweep=custom", "model=static", "logger=none", "dataset=pairs", f"dataset.path={pairs_file}",
        f"sweep.storage_env={VARIABLE}", "loss.scale=interval(1,2)",
    )  # fmt: skip
    assert done.code == 1
    assert f"sweep.storage_env={VARIABLE}" in done.output
    assert words in done.output
    assert "Traceback" not in done.output
    assert "canary" not in done.output
    assert "#0 starts" not in done.output
    assert not holding("canary", tmp_path)


@pytest.mark.real_server
def test_a_wrong_password_is_told_and_is_nowhere(database, studies, embexp, monkeypatch, pairs_file, tmp_path):
    monkeypatch.setenv(VARIABLE, with_password(studies, database).replace(database.password, "canary"))
    done = embexp(
        "-m", "sweep=custom", "model=static", "logger=none", "dataset=pairs", f"dataset.path={pairs_file}",
        f"sweep.storage_env={VARIABLE}", "loss.scale=interval(1,2)", "debug=true",
    )  # fmt: skip
    assert done.code == 1
    assert "password authentication failed" in done.output
    assert "canary" not in done.output
    assert not holding("canary", tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:canary@host/db",
        "postgresql://me:can/ary@host/db",
        "postgresql://me:canary",
        "postgresql://me@host/db?password=canary",
        "mysql://me@host/canary",
    ],
)
def test_a_password_in_the_config_is_refused_and_is_nowhere(embexp, pairs_file, tmp_path, address):
    done = embexp(
        "-m", "sweep=custom", "model=static", "logger=none", "dataset=pairs", f"dataset.path={pairs_file}",
        f"sweep.storage='{address}'", "loss.scale=interval(1,2)",
    )  # fmt: skip
    assert done.code == 1
    assert ("password" if "mysql" not in address else "must be a PostgreSQL address") in done.output
    assert "canary" not in done.output
    assert not holding("canary", tmp_path)
    assert not holding("ary@host", tmp_path)


def test_an_address_without_a_password_is_accepted_as_a_setting():
    from embexp.sweep.settings import _address_mistakes

    for url in ("postgresql://me@host:5432/db", "postgresql:///db", "postgresql://host/db", "postgres://me@[::1]:1/db"):
        assert _address_mistakes({"storage": url, "storage_env": None}) == []


def test_what_does_not_come_back_ends_after_some_time_and_other_errors_at_once():
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    calls = []

    def fails():
        calls.append(time.monotonic())
        return opened(Address("", "postgresql://me@127.0.0.1:1/db"))

    with pytest.raises(UserError, match="can't be reached"):
        patiently(fails, seconds=1)
    assert len(calls) == 2
    with pytest.raises(ZeroDivisionError):
        patiently(lambda: calls.append(0) or 1 / 0, seconds=1)
    assert len(calls) == 3


def holding(text: str, folder: Path) -> list[Path]:
    """The files in a folder that hold a text, in their content or name."""
    return [
        path
        for path in folder.rglob("*")
        if text in path.name or (path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes())
    ]
