"""A study and where it is kept: exact totals, leases, killed holders of its locks, torn journals, seeds, addresses."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from embexp.config.checks import CONFIG_FOLDER, plain
from embexp.config.components import build
from embexp.errors import Pruned, UserError
from embexp.jobs.job import DISK_FULL
from embexp.jobs.workers import Ended
from embexp.sweep import lease
from embexp.sweep.crew import end_of
from embexp.sweep.lease import BEAT, OWNER, PROCESS, this_process
from embexp.sweep.reference import JOURNAL, Address, TrialReference
from embexp.sweep.running import Runner
from embexp.sweep.settings import mistakes_in, mistakes_in_search
from embexp.sweep.storage import BLOCK, alone, is_away, opened
from embexp.sweep.sweeper import seed_of
from embexp.sweep.trial import REASON, Trial
from tests.studies import FORK, asked, mark, states, study_in


@pytest.fixture
def study(tmp_path):
    return study_in(tmp_path)


@pytest.fixture
def gone():
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = {**this_process(), "pid": process.pid, "started": lease.started_at(process.pid)}
    process.communicate(b"\n")
    return found


def parent_started():
    return lease.started_at(os.getppid())


# how many


def ask_all(folder, numbers):
    study = study_in(folder)
    while (found := asked(study, total=12)) is not None:
        numbers.put((found[0].number, found[1]))


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_four_that_ask_at_once_get_exactly_the_total_each_trial_once(tmp_path, kind):
    study_in(tmp_path)
    numbers = FORK.Queue()
    start = threading.Thread if kind == "threads" else FORK.Process
    asking = [start(target=ask_all, args=(tmp_path, numbers)) for _ in range(4)]
    for each in asking:
        each.start()
    found = [numbers.get(timeout=30) for _ in range(12)]
    for each in asking:
        each.join()
    assert sorted(number for number, _ in found) == [*range(12)]
    assert len({owner for _, owner in found}) == 12
    assert len(study_in(tmp_path).trials()) == 12
    assert numbers.empty()


def test_a_new_trial_is_refused_when_its_place_is_taken_and_the_study_stays_as_it_was(study):
    def free(number):
        raise UserError(f"{number} is taken")

    asked(study)
    with pytest.raises(UserError, match="1 is taken"):
        study.next(10, free=free)
    assert states(study) == [TrialState.RUNNING]


def test_first_trials_are_named_once(study):
    study.enqueue([{"seed": 1}, {"seed": 2}])
    study.enqueue([{"seed": 1}, {"seed": 2}])
    seeds = [asked(study, total=2)[0].suggest_categorical("seed", [1, 2]) for _ in range(2)]
    assert seeds == [1, 2]
    assert asked(study, total=2) is None


# who is at work


def test_a_trial_of_a_living_process_is_not_run_again(study):
    asked(study)
    assert study.run_again(set()) == []
    assert states(study) == [TrialState.RUNNING]


def test_a_trial_without_an_owner_is_run_again(study):
    study.as_optuna.ask()  # killed before it could say whose it is
    assert study.run_again(set()) == [0]
    assert asked(study)[0].number == 0


def test_a_trial_of_a_process_that_is_gone_is_run_again_by_another_owner(study, gone):
    _, owner = asked(study)
    mark(study, 0, PROCESS, gone)
    assert study.run_again({0}) == []  # whoever has it says so itself
    assert study.run_again(set()) == [0]
    again, other = asked(study)
    assert again.number == 0
    assert other != owner


def test_a_process_id_that_another_process_has_now_is_a_process_that_is_gone(study):
    asked(study)
    mark(study, 0, PROCESS, {**this_process(), "started": 1.0})
    assert study.run_again(set()) == [0]


def test_of_another_machine_only_a_trial_whose_beats_have_stopped_is_run_again(study, gone, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    for number in range(2):
        asked(study)
        mark(study, number, PROCESS, {**gone, "machine": "elsewhere"})
        mark(study, number, BEAT, 0.0)  # by its own clock, which may be wrong
    found = []
    for beats in range(1, 6):
        found.append(study.run_again(set()))
        now[0] += 15
        mark(study, 1, BEAT, float(beats))
    assert found == [[], [], [], [], []]  # at 0, 15, 30, 45 and 60 seconds
    now[0] += 0.5
    assert study.run_again(set()) == [0]
    assert states(study) == [TrialState.WAITING, TrialState.RUNNING]


def test_a_long_time_without_a_look_is_not_taken_for_beats_that_have_stopped(study, gone, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    asked(study)
    mark(study, 0, PROCESS, {**gone, "machine": "elsewhere"})
    for _ in range(5):
        assert (
            study.run_again(set()) == []
        )  # the database was away, for the trial too; a look counts 15 seconds at most
        now[0] += 10_000
    assert study.run_again(set()) == [0]


def test_beats_say_that_somebody_is_at_work_until_the_work_is_over():
    beats = []
    with lease.renewed(lambda: beats.append(1), seconds=0.1):
        time.sleep(0.5)
    assert 5 <= len(beats) <= 20  # 20 quarters of 0.1 s
    count = len(beats)
    time.sleep(0.1)
    assert len(beats) == count


def test_a_lease_can_be_renewed_only_by_the_process_that_handed_the_trial_out(study, gone):
    asked(study)
    study.renew(0, 7.0)
    mark(study, 0, PROCESS, gone)
    study.renew(0, 8.0)
    assert study.trials()[0].user_attrs[BEAT] == 7.0


# how trials end from outside


def test_a_trial_whose_process_was_killed_twice_runs_again_and_a_third_time_has_failed_with_its_reason(study):
    _, owner = asked(study)
    for _ in range(2):
        assert study.release(0, owner, died="was killed by SIGKILL")
        again, owner = asked(study)
        assert again.number == 0
    assert not study.release(0, owner, died="was killed by SIGKILL")
    (trial,) = study.trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs[REASON] == "was killed by SIGKILL, 3 times; perhaps for want of memory"
    assert asked(study)[0].number == 1


def test_a_trial_that_was_only_interrupted_runs_again_however_often(study):
    for died in (None, None, None, "was killed by SIGKILL"):
        _, owner = asked(study)
        assert study.release(0, owner, died=died)
    assert states(study) == [TrialState.WAITING]


def test_a_trial_that_another_has_now_is_left_alone(study):
    _, owner = asked(study)
    study.release(0, owner)
    _, other = asked(study)
    assert not study.release(0, owner, died="was killed by SIGKILL")
    study.fail(0, owner, "it never had a chance")
    (trial,) = study.trials()
    assert trial.state == TrialState.RUNNING
    assert trial.user_attrs[OWNER] == other
    study.fail(0, other, "a bug")
    assert study.trials()[0].user_attrs[REASON] == "a bug"
    study.fail(0, other, "another bug")  # it has ended
    assert study.trials()[0].user_attrs[REASON] == "a bug"


@pytest.mark.parametrize(
    ("code", "out_of_memory", "status", "state", "reason"),
    [
        (1, False, None, TrialState.FAIL, "its process ended with exit code 1 and left no result"),
        (-11, False, None, TrialState.FAIL, "its process was killed by SIGSEGV and left no result"),
        (-9, True, None, TrialState.FAIL, "the system ended it for want of memory (out of memory)"),
        (-9, False, None, TrialState.FAIL, "was killed by SIGKILL, 3 times; perhaps for want of memory"),
        (130, False, None, TrialState.WAITING, None),
        (-9, False, "completed", TrialState.WAITING, None),  # whoever has it next tells what was measured
        (-9, True, "pruned", TrialState.WAITING, None),
    ],
)
def test_what_becomes_of_a_trial_whose_process_has_ended_without_a_word(
    tmp_path, study, code, out_of_memory, status, state, reason
):
    runner = Runner(study, None, None, folder=tmp_path, label_of=str, job_of=None)
    if status is not None:
        (tmp_path / "0").mkdir()
        (tmp_path / "0" / "result.json").write_text(json.dumps({"status": status}))
    for _ in range(4):
        trial, owner = asked(study)
        if trial.number == 0:
            runner._settle(0, owner, end_of(Ended(code, out_of_memory)))
    assert states(study)[0] == state
    assert study.trials()[0].user_attrs.get(REASON) == reason


def test_a_trial_that_found_the_disk_full_runs_again_and_the_sweep_ends(tmp_path, study):
    _, owner = asked(study)
    runner = Runner(study, None, None, folder=tmp_path, label_of=str, job_of=None)
    with pytest.raises(UserError, match="the disk is full, or nearly"):
        runner._settle(0, owner, end_of(Ended(DISK_FULL)))
    assert states(study) == [TrialState.WAITING]


def test_a_sweeper_that_ends_early_puts_back_all_that_it_has_handed_out_and_nothing_else(study, gone):
    owners = [asked(study)[1] for _ in range(5)]
    mark(study, 0, PROCESS, {**gone, "machine": "elsewhere"})  # in a cluster, and cancelled
    mark(study, 1, PROCESS, gone)  # stopped
    mark(study, 3, PROCESS, {**gone, "machine": "elsewhere"})  # another sweeper's
    mark(study, 4, PROCESS, {**this_process(), "pid": os.getppid(), "started": parent_started()})  # and another's
    study.as_optuna.ask()  # interrupted before it could say whose it is
    study.put_back([(0, owners[0]), (3, "its former owner")])
    waits, runs = TrialState.WAITING, TrialState.RUNNING
    assert states(study) == [waits, waits, waits, runs, runs, waits]  # 2 was about to be started here


# the journal


@pytest.mark.parametrize("length", [10, BLOCK - 10, 2 * BLOCK + 10])
def test_a_torn_last_line_of_the_journal_is_cut_off_by_the_next_writer(tmp_path, length):
    asked(study_in(tmp_path))
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":8,"' + b"x" * (length - 14))  # its writer was killed
    study = study_in(tmp_path)
    assert states(study) == [TrialState.RUNNING]
    assert asked(study)[0].number == 1
    assert journal.read_bytes().startswith(whole)
    assert [json.loads(line)["op_code"] for line in journal.read_text().splitlines()]
    assert len(study_in(tmp_path).trials()) == 2


def test_a_journal_that_is_a_torn_line_alone_starts_anew(tmp_path):
    (tmp_path / JOURNAL).write_text('{"op_code":0,"worker_')
    asked(study_in(tmp_path))
    assert len(study_in(tmp_path).trials()) == 1


def hold_and_wait(folder, which, holds):
    address = Address(str(folder))
    if which == "the study's":
        with alone(address, opened(address), "test"):
            holds.set()
            time.sleep(60)
    storage = opened(address)
    storage._backend._lock.acquire()
    with (folder / JOURNAL).open("a") as file:
        file.write('{"op_code":4,')  # in the middle of a line
    holds.set()
    time.sleep(60)


@pytest.mark.parametrize("which", ["the study's", "the journal's"])
def test_a_lock_whose_holder_was_killed_is_had_by_the_next_within_a_second(tmp_path, which):
    study = study_in(tmp_path)
    asked(study)
    holds = FORK.Event()
    holder = FORK.Process(target=hold_and_wait, args=(tmp_path, which, holds), daemon=True)
    holder.start()
    assert holds.wait(10)
    waiting = threading.Thread(target=asked, args=(study,))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()  # as long as its holder lives
    start = time.monotonic()
    os.kill(holder.pid, signal.SIGKILL)
    waiting.join(10)
    assert time.monotonic() - start < 1
    assert len(study_in(tmp_path).trials()) == 2
    names = {"the study's": ".test.lock", "the journal's": ".study.journal.lock"}
    assert (tmp_path / names[which]).exists()  # left there, and in nobody's way
    holder.join()


# what may not change


CONTRACT = {"search space": {"lr": "interval(0,1)"}, "config": {"seed": 0, "loss.scale": 20.0}, "data": {"train": "ab"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"search space": {"lr": "interval(0,2)"}}, "search space: lr was 'interval(0,1)', now 'interval(0,2)'"),
        ({"config": {"seed": 1, "loss.scale": 20.0}}, "config: seed was 0, now 1"),
        ({"config": {"loss.scale": 20.0}}, "config: seed was 0, now 'not there'"),
        ({"search space": {"lr": "interval(0,1)", "x": "a"}}, "search space: x was 'not there', now 'a'"),
        ({"data": {"train": "ac"}}, "data: train was 'ab', now 'ac'"),
    ],
)
def test_a_changed_contract_is_refused_with_what_has_changed(tmp_path, change, words):
    study_in(tmp_path).hold_to(CONTRACT)
    again = study_in(tmp_path)
    again.hold_to(json.loads(json.dumps(CONTRACT)))
    with pytest.raises(UserError, match=re.escape(words)) as error:
        again.hold_to({**CONTRACT, **change})
    assert "set another sweep.name to start afresh" in str(error.value)
    again.hold_to(CONTRACT)  # a refusal changes nothing


def test_an_incomplete_contract_is_held_to_what_there_is_and_not_kept(tmp_path):
    study = study_in(tmp_path)
    study.hold_to({"config": {"seed": 5}}, complete=False)
    study.hold_to(CONTRACT)
    with pytest.raises(UserError, match="config: seed was 0, now 5"):
        study.hold_to({"config": {"seed": 5}}, complete=False)


# what is tried


def drawn(trial):
    return trial.suggest_float("x", 0, 1), trial.suggest_categorical("kind", ["a", "b"])


def run(study, total):
    """What was tried, to a total, one at a time; the score is the number drawn."""
    while (found := asked(study, total)) is not None:
        values = drawn(found[0])
        study.as_optuna.tell(found[0], values[0])
    return [tuple(trial.params.values()) for trial in study.trials()]


@pytest.mark.parametrize(
    "sampler",
    [lambda number: RandomSampler(seed=number), lambda number: TPESampler(seed=number, n_startup_trials=3)],
    ids=["random", "tpe"],
)
@pytest.mark.parametrize("drawn_before", [True, False], ids=["killed while it ran", "killed before it had parameters"])
def test_an_interrupted_study_tries_what_one_that_never_stopped_tries(tmp_path, gone, sampler, drawn_before):
    (tmp_path / "whole").mkdir()
    whole = run(study_in(tmp_path / "whole", sampler=sampler), total=9)
    assert len(set(whole)) == 9
    for total in (2, 5, 8):
        study = study_in(tmp_path, sampler=sampler)
        study.run_again(set())
        run(study, total)
        trial, _ = asked(study, total + 1)
        if drawn_before:
            drawn(trial)
        mark(study, total, PROCESS, gone)
    study = study_in(tmp_path, sampler=sampler)
    assert study.run_again(set()) == [8]
    assert run(study, total=9) == whole


def composed(*overrides):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("config", ["sweep=custom", *overrides], return_hydra_config=True)
    sweeper = plain(config.hydra.sweeper)
    return plain(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])), sweeper


def files_in(group):
    return sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))


@pytest.mark.parametrize("name", files_in("sampler"))
def test_every_sampler_is_accepted_and_draws_for_ten_trials(tmp_path, name):
    config, sweeper = composed(f"sampler={name}")
    assert mistakes_in(config, sweeper) == []
    node = sweeper["sampler"]
    study = study_in(tmp_path, sampler=lambda number: build({**node, "seed": number}, allowed=["optuna"]))
    assert len(set(run(study, total=10))) == 10


@pytest.mark.parametrize("name", files_in("pruner"))
def test_every_pruner_is_accepted_and_but_for_none_gives_up_the_hopeless_of_ten(tmp_path, name):
    config, sweeper = composed(f"pruner={name}")
    assert mistakes_in(config, sweeper) == []
    node = sweeper["pruner"]
    study = study_in(tmp_path, pruner=build(node, allowed=["optuna"]) if node else None)
    address = Address(str(tmp_path))
    while (found := asked(study, total=10)) is not None:
        number, owner = found[0].number, found[1]
        trial = Trial(TrialReference(address, "test", number, owner, ("metric",), "recall@10", 2, node, 60.0))
        try:
            for look in range(1, 9):
                trial.report({"recall@10": (0.5 if number < 5 else 0.1) + look / 100 - number / 1000}, look)
            study.as_optuna.tell(number, 0.5)
        except Pruned:
            study.as_optuna.tell(number, state=TrialState.PRUNED)
    pruned = {trial.number for trial in study.trials() if trial.state == TrialState.PRUNED}
    assert 0 not in pruned  # the best, and the first
    assert bool(pruned & {5, 6, 7, 8, 9}) == (name != "none")


# where it is kept


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:hunter2@host/db",
        "postgresql://me:hunter2@host:5432/db",
        "postgresql://me:hunter2/x@host/db",
        "postgresql://me:hunter2/db",
        "postgresql://host/db?user=me&password=hunter2",
        "mysql://me:hunter2@host/db",
        "me:hunter2@host/db",
    ],
)
def test_an_address_with_a_password_is_refused_and_the_password_not_repeated(address):
    config, sweeper = composed()
    config["sweep"]["storage"] = address
    (mistake,) = mistakes_in(config, sweeper)
    assert "sweep.storage holds a password" in mistake
    assert "hunter2" not in mistake


@pytest.mark.parametrize("address", ["postgresql://me@host:5432/db", "postgres://host/db?sslmode=require", None])
def test_an_address_without_a_password_is_accepted(address):
    config, sweeper = composed()
    config["sweep"]["storage"] = address
    assert mistakes_in(config, sweeper) == []


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (None, "sweep.storage_env=STUDY: there is no such environment variable"),
        ("", "sweep.storage_env=STUDY: there is no such environment variable"),
        ("mysql://me:hunter2@host/db", "starts with postgresql://"),
        ("me:hunter2@host/db", "starts with postgresql://"),
        ("postgresql://me:hun@ter2@127.0.0.1:1/db", "write an @ in the password as %40"),
        ("postgresql://me:hun/t@er2@127.0.0.1:1/db", "write an @ in the password as %40"),
        ("postgresql://me:hunter2/db", "can't be read as an address"),
        ("postgresql://me:hunter2@127.0.0.1:one/db", "can't be read as an address"),
        ("postgresql://me:hunter2@127.0.0.1:1/db", "the database can't be reached"),
        ("postgresql://me:hunter2@no-such-host.invalid/db", "the database can't be reached"),
    ],
)
def test_an_address_that_does_not_lead_to_a_database_is_told_without_its_password(
    tmp_path, monkeypatch, address, words
):
    pytest.importorskip("psycopg", reason="needs the extra embexp[postgresql]")
    if address is None:
        monkeypatch.delenv("STUDY", raising=False)
    else:
        monkeypatch.setenv("STUDY", address)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        opened(Address(str(tmp_path), variable="STUDY"))
    assert "ter2" not in str(error.value)
    assert "hun" not in str(error.value)


def test_a_study_in_a_folder_that_can_not_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=re.escape(f"the study {tmp_path}/file/sweep/study.journal can't be opened")):
        opened(Address(str(Path(tmp_path, "file", "sweep"))))


# what can't be searched


@pytest.mark.parametrize(
    ("searched", "words"),
    [
        ({"metric": ["recall@1", "recall@10"]}, "metric is what trials are compared by"),
        ({"metric": ["dim64.recall@10", "recall@10"]}, None),
        ({"model": ["minilm", "mpnet"]}, "set evaluator.retrieval.training_distractors=null, or pruner=none"),
        ({"loss": ["mnrl", "triplet"]}, None),
        ({"reranker.depth": [20, 50]}, "reranker.depth: a trial has no reranker"),
    ],
)
def test_a_search_that_would_compare_what_does_not_compare_is_refused(searched, words):
    config, sweeper = composed()
    found = mistakes_in_search(config["evaluator"], sweeper, searched)
    assert found == [] if words is None else words in found[0]
    assert mistakes_in_search(config["evaluator"], {**sweeper, "pruner": None}, {"model": ["minilm"]}) == []


def test_a_sampler_may_hold_nothing_that_is_no_sampler():
    config, sweeper = composed()
    storage = {"_target_": "optuna.storages.journal.JournalFileBackend", "file_path": "x"}
    sweeper["sampler"]["gamma"] = storage
    assert mistakes_in(config, sweeper) == ["sampler.gamma must be of optuna.samplers. or optuna.pruners."]


def test_neighbouring_seeds_and_trials_draw_from_generators_of_their_own():
    seeds = {seed_of(seed, number) for seed in range(3) for number in range(20)}
    assert len(seeds) == 60


def test_a_study_whose_first_sweeper_said_nothing_keeps_its_directions(tmp_path):
    study_in(tmp_path)
    with pytest.raises(UserError, match="asks for maximize, now minimize"):
        study_in(tmp_path, directions=("minimize",)).hold_to({}, complete=False)


def test_an_error_that_leads_to_itself_is_looked_through_once():
    inner, outer = RuntimeError("a bug in this data set"), ValueError("can't be made")
    outer.__cause__, inner.__context__ = inner, outer
    assert not is_away(inner)
    inner.__cause__ = OperationalError("SELECT 1", {}, Exception("the server closed the connection"))
    assert is_away(outer)
