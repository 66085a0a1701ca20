"""Sweeps of real processes that are killed, crash, run out of disk or share a study; the same command goes on.

One study goes through all of it, and is looked at afterwards: killed trials, a killed sweeper, one killed while it
hands a trial out, trials killed while they hold its locks, a full disk, Ctrl-C.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from embexp.sweep.lease import PROCESS, is_gone
from embexp.sweep.reference import JOURNAL, Address
from embexp.sweep.storage import opened
from embexp.sweep.trial import REASON
from tests.command import REPOSITORY, hear_interrupts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits files as Linux does")

MODEL = ["model=static", "model.dimension=16", "logger=none", "trainer.per_device_train_batch_size=4"]
SEARCH = ["sampler=random", "hydra.sweeper.sampler._target_=optuna.samplers.BruteForceSampler", "pruner=none"]
NAMED = ["sweep=custom", "sweep.name=test", "sweep.confirm_seeds=0", "hydra.sweeper.max_failed=1"]
OWN = ["dataset=crashing", "allowed_packages=[crashing]", "dataset.columns.group=group"]
ENDED = (TrialState.COMPLETE, TrialState.FAIL)

CRASHING = """
import os, signal, time
from pathlib import Path
from embexp.datasets.pairs import load
from embexp.data.splits import limited

def crash(path, columns, split, how):
    if how == "raise":
        raise RuntimeError("a bug in this data set")
    if how == "exit":
        os._exit(7)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how in ("study", "journal") and not Path(how).exists():
        Path(how).touch()
        die_holding(how)
    time.sleep(3 if how.startswith("slow") else 0.5)
    queries = 4 * (1 + int(how[-1])) if how[-1].isdigit() else 12
    return limited(load(path=path, columns=columns, split=split), queries)  # so that the scores differ

def die_holding(lock):
    from embexp.sweep.reference import Address
    from embexp.sweep.storage import alone, opened
    address = Address(str(Path("multirun/test").absolute()))
    storage = opened(address)
    if lock == "study":
        with alone(address, storage, "test"):
            os.kill(os.getpid(), signal.SIGKILL)
    storage._backend._lock.acquire()
    with Path(storage._backend._file_path).open("a") as file:
        file.write('{"op_code":8,"trial_')  # half a line
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""

# runs embexp with what happens at a trial, while the study's lock is held or the trial is not yet started; or slowly
AT_TRIAL = """
import os, signal, sys, time
from pathlib import Path
import optuna
from embexp.cli import main
from embexp.sweep.composing import Composer

what, number = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
ask, job = optuna.study.Study.ask, Composer.job

def asked(self, *arguments):
    trial = ask(self, *arguments)
    if what == "kill" and trial.number == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return trial

def composed(self, trial, *arguments, **options):
    if what == "interrupt" and trial == number:
        os.killpg(0, signal.SIGINT)
    return job(self, trial, *arguments, **options)

replace = Path.replace

def replaced(self, target):
    if what == "write slowly" and self.name == "summary.md.partial":
        time.sleep(2)
    return replace(self, target)

optuna.study.Study.ask, Composer.job, Path.replace = asked, composed, replaced
main()
"""


class Swept:
    """A folder with one sweep in it."""

    def __init__(self, folder: Path, pairs: Path, hows: list[str]) -> None:
        self.folder, self.hows = folder, hows
        (folder / "crashing.py").write_text(CRASHING)
        own = folder / "my_conf" / "dataset"
        own.mkdir(parents=True)
        (own / "crashing.yaml").write_text(f"defaults: [pairs]\n_target_: crashing.crash\npath: {pairs}\nhow: none\n")
        search = [f"dataset.how=choice({','.join(hows)})", f"hydra.sweeper.n_trials={len(hows)}"]
        self.words = ["-m", "--config-dir", "my_conf", *NAMED, *MODEL, *OWN, *SEARCH, *search]

    def start(self, *words, at=None, before=hear_interrupts, log="log.txt"):
        """The command in a process group of its own; at: what happens at which trial, see AT_TRIAL."""
        program = ["-m", "embexp"] if at is None else ["-c", AT_TRIAL, *map(str, at)]
        with (self.folder / log).open("w") as file:
            return subprocess.Popen(
                [sys.executable, *program, *self.words, *words], cwd=self.folder, stdout=file, stderr=file,
                env={**os.environ, "PYTHONPATH": f"{self.folder}:{REPOSITORY}"}, start_new_session=True,
                preexec_fn=before,
            )  # fmt: skip

    def said(self, log="log.txt"):
        return (self.folder / log).read_text()

    @property
    def path(self):
        return self.folder / "multirun" / "test"

    @property
    def study(self):
        return optuna.load_study(study_name="test", storage=opened(Address(str(self.path))))

    @property
    def trials(self):
        """None yet while the study is being made."""
        if not (self.path / JOURNAL).exists():
            return []
        try:
            return self.study.get_trials()
        except KeyError:
            return []

    def states(self):
        return [trial.state for trial in self.trials]

    def ended(self):
        """What has ended, with what it came to: none of it may change."""
        found = {
            trial.number: (trial.value, trial.user_attrs.get(REASON)) for trial in self.trials if trial.state in ENDED
        }
        return {number: (*what, self.result(number)) for number, what in found.items()}

    def result(self, number):
        file = self.path / str(number) / "result.json"
        return json.loads(file.read_text()) if file.exists() else None


def until(condition, *, seconds=90):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def kill_trials(swept, sweeper, chance, *, number):
    """Kill that many trials, each once, some time after it began; returns which."""
    killed = set()

    def at_work():
        assert sweeper.poll() is None, swept.said()
        for trial in swept.trials:
            process = trial.user_attrs.get(PROCESS, {"pid": sweeper.pid})
            harmless = trial.params.get("dataset.how", "").startswith("none")
            fresh = harmless and trial.number not in killed
            if trial.state == TrialState.RUNNING and fresh and process["pid"] != sweeper.pid:
                return trial.number, process
        return None

    while len(killed) < number:
        trial, process = until(at_work)
        time.sleep(chance.uniform(0, 1))
        if not is_gone(process):  # it may have ended in time
            with suppress(ProcessLookupError):
                os.kill(process["pid"], signal.SIGKILL)
                killed.add(trial)
    return killed


@pytest.fixture(scope="module")
def survivor(tmp_path_factory, pairs):
    """A sweep to which everything has happened, and what was seen after each."""
    hows = ["none0", "none1", "none2", "none3", "none4", "raise", "exit", "crash", "study", "journal"]
    swept = Swept(tmp_path_factory.mktemp("survivor"), pairs, hows)
    chance, two = random.Random(5), "hydra.sweeper.n_jobs=2"
    seen = {}

    sweeper = swept.start(two)
    seen["killed"] = kill_trials(swept, sweeper, chance, number=2)
    time.sleep(chance.uniform(0, 1))
    sweeper.kill()
    sweeper.wait()
    seen["log"] = swept.said()
    seen["ended"] = [swept.ended()]

    sweeper = swept.start(two, at=("kill", max(len(swept.trials), 4)))  # while it holds the study's lock
    seen["in next"] = sweeper.wait(120)
    seen["ended"].append(swept.ended())
    seen["without owner"] = [t.number for t in swept.trials if t.state == TrialState.RUNNING and not t.user_attrs]

    sweeper = swept.start(two, at=("interrupt", len(swept.trials)))  # one at work, one not yet started
    seen["ctrl-c"] = sweeper.wait(120), swept.said(), swept.states()
    seen["ended"].append(swept.ended())

    study = swept.study
    study.set_user_attr("padding", "x" * 300_000)  # so that no other file is as large as the journal
    size = (swept.path / JOURNAL).stat().st_size + 1_500
    sweeper = swept.start(two, before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)))
    seen["full"] = sweeper.wait(120), swept.said()
    seen["ended"].append(swept.ended())

    sweeper = swept.start(two)
    seen["end"] = sweeper.wait(120), swept.said()
    seen["ended"].append(swept.ended())
    return swept, seen


def test_after_all_that_the_same_command_ends_with_exactly_the_asked_trials(survivor):
    swept, seen = survivor
    assert seen["end"][0] == 0, seen["end"][1]
    assert len(swept.trials) == len(swept.hows)
    assert set(swept.states()) == set(ENDED)
    assert sorted(trial.params["dataset.how"] for trial in swept.trials) == sorted(swept.hows)  # none was tried twice


def test_the_best_is_the_studys_best_and_the_folders_hold_what_the_study_was_told(survivor):
    swept, _ = survivor
    for trial in swept.trials:
        result = swept.result(trial.number)
        if trial.state == TrialState.COMPLETE:
            assert result["status"] == "completed"
            assert result["tuned"]["dev"]["recall@10"] == trial.value
            assert result["config"]["dataset"]["how"] == trial.params["dataset.how"]
        else:
            assert result is None or result["status"] == "failed"
    best = swept.study.best_trial
    assert best.value == max(trial.value for trial in swept.trials if trial.state == TrialState.COMPLETE)
    first = next(row for row in (swept.path / "summary.md").read_text().splitlines() if row.endswith("completed |"))
    assert round(best.value, 3) == float(first.split("|")[3])


def test_nothing_that_had_ended_was_done_again_or_lost(survivor):
    _, seen = survivor
    for before, after in zip(seen["ended"], seen["ended"][1:], strict=False):
        assert before.items() <= after.items()
    assert len(seen["ended"][0]) < len(seen["ended"][-1])


def test_what_crashes_fails_alone_with_its_reason(survivor):
    swept, _ = survivor
    failed = {t.params["dataset.how"]: t.user_attrs[REASON] for t in swept.trials if t.state == TrialState.FAIL}
    assert failed == {
        "raise": "RuntimeError: a bug in this data set",
        "exit": "its process ended with exit code 7 and left no result",
        "crash": "its process was killed by SIGSEGV and left no result",
    }


def test_killed_trials_are_run_again_also_when_they_held_a_lock(survivor):
    swept, seen = survivor
    assert len(seen["killed"]) == 2
    again = {int(number) for number in re.findall(r"#(\d+) was killed by SIGKILL, and runs again", seen["log"])}
    assert again & seen["killed"]
    states = {trial.params["dataset.how"]: trial.state for trial in swept.trials}
    assert {states["study"], states["journal"]} == {TrialState.COMPLETE}
    assert (swept.folder / "study").exists()  # it was killed, the first time
    assert (swept.folder / "journal").exists()
    journal = (swept.path / JOURNAL).read_text()
    assert [json.loads(line) for line in journal.splitlines()]
    assert journal.endswith("\n")


def test_a_sweeper_killed_while_it_hands_a_trial_out_leaves_one_that_runs_again(survivor):
    _, seen = survivor
    assert seen["in next"] == -signal.SIGKILL
    assert len(seen["without owner"]) == 1
    assert set(seen["without owner"]) <= seen["ended"][-1].keys()


def test_ctrl_c_leaves_no_trial_at_work_and_says_that_the_same_command_goes_on(survivor):
    _, seen = survivor
    code, said, states = seen["ctrl-c"]
    assert code == 1
    assert "interrupted; what has ended is kept. The same command goes on" in said
    assert "Traceback" not in said
    assert TrialState.WAITING in states
    assert TrialState.RUNNING not in states


def test_a_disk_full_while_the_study_is_written_is_told_and_the_same_command_goes_on(survivor):
    _, seen = survivor
    code, said = seen["full"]
    assert code == 1
    assert "the disk is full, or nearly" in said
    assert "Free some space" in said
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def shared(tmp_path_factory, pairs):
    """A sweep that two sweepers carry out together, one of them with two slots."""
    hows = [f"none{place}" for place in range(5)] + [f"slow{place}" for place in range(4)]
    swept = Swept(tmp_path_factory.mktemp("shared"), pairs, hows)
    slowly = ("write slowly", 0)  # so that both are at it when they write the summary
    sweepers = [swept.start(f"hydra.sweeper.n_jobs={jobs}", log=f"{jobs}.txt", at=slowly) for jobs in (1, 2)]
    codes = [sweeper.wait(150) for sweeper in sweepers]
    return swept, codes


def test_two_sweepers_at_once_share_the_total_exactly(shared):
    swept, codes = shared
    said = [swept.said("1.txt"), swept.said("2.txt")]
    assert codes == [0, 0], said
    started = [re.findall(r"#(\d+) starts", each) for each in said]
    assert sorted([*started[0], *started[1]]) == sorted(str(number) for number in range(9))  # each once, by one of them
    assert min(len(each) for each in started) >= 1
    assert swept.states() == [TrialState.COMPLETE] * 9
    for each in said:
        assert "summary:" in each


def test_a_slot_is_filled_again_at_once_while_trials_remain(shared):
    swept, _ = shared
    for jobs in (1, 2):
        numbers = {int(number) for number in re.findall(r"#(\d+) starts", swept.said(f"{jobs}.txt"))}
        mine = [trial for trial in swept.trials if trial.number in numbers]
        starts = sorted(trial.datetime_start for trial in mine)
        ends = sorted(trial.datetime_complete for trial in mine)
        idle = [(start - end).total_seconds() for start, end in zip(starts[jobs:], ends, strict=False)]
        assert max(idle, default=0) < 2, idle  # every second trial takes three seconds more than the others
