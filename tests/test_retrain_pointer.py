"""The pointer to the served model: turned in one step, back again, and whole whatever is killed when."""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from embexp.errors import BusyError, UserError
from embexp.retrain import attempts
from embexp.retrain.pointer import PROMOTED, STARTED, Models, models_of
from tests.attempts import at_file_event


def run_in(folder: Path, name: str) -> Path:
    """As much of a run as a pointer needs."""
    run = folder / name
    (run / "model").mkdir(parents=True)
    (run / "result.json").write_text("{}")
    return run


@pytest.fixture
def models(tmp_path):
    """A first run beside the models' folder, and two promoted ones in it."""
    found = Models(tmp_path / "models")
    found.folder.mkdir()
    found.turn(STARTED, run_in(tmp_path, "first"), ["the first"])
    for name in ("0001", "0002"):
        found.turn(PROMOTED, run_in(found.folder, name), [f"{name} is better"])
    return found


def in_a_child(act):
    """Its exit code, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def events(models):
    return [(line["event"], line["model"], line["before"]) for line in models.history()]


def test_the_pointer_is_a_link_that_servers_can_open_and_the_history_says_why(models):
    assert (models.folder / "current").readlink() == Path("0002")
    assert (models.folder / "current" / "model").is_dir()
    assert models.current == models.folder / "0002"
    assert events(models) == [
        ("started", "../first", None), ("promoted", "0001", "../first"), ("promoted", "0002", "0001"),
    ]  # fmt: skip
    assert models.history()[-1]["reasons"] == ["0002 is better"]


def test_rolling_back_twice_leads_to_the_first_and_a_third_time_is_refused(models):
    assert models.rollback() == ("0002", "0001")
    assert models.rollback() == ("0001", "../first")
    assert models.current == models.folder.parent / "first"
    with pytest.raises(UserError, match="no model before the current one"):
        models.rollback()
    models.turn(PROMOTED, run_in(models.folder, "0003"), ["better"])
    assert models.rollback() == ("0003", "../first")


def test_a_model_that_is_gone_is_not_rolled_back_to(models):
    (models.folder / "0001" / "model").rename(models.folder / "elsewhere")
    with pytest.raises(UserError, match="0001, is no longer there"):
        models.rollback()
    assert models.current == models.folder / "0002"


def test_without_links_a_file_says_it(models, monkeypatch):
    def refused(*_args, **_options):
        raise PermissionError("no links here")

    (models.folder / "current").unlink()
    monkeypatch.setattr(Path, "symlink_to", refused)
    models.turn(PROMOTED, run_in(models.folder, "0003"), ["better"])
    assert json.loads((models.folder / "current.json").read_text()) == {"model": "0003"}
    assert models.current == models.folder / "0003"
    monkeypatch.undo()
    models.turn(PROMOTED, run_in(models.folder, "0004"), ["better"])
    assert models.current == models.folder / "0004"
    assert not (models.folder / "current.json").exists()


def test_what_is_no_pointer_is_not_overwritten(tmp_path):
    (tmp_path / "current").mkdir()
    with pytest.raises(UserError, match="is no link to a run"):
        Models(tmp_path).turn(STARTED, run_in(tmp_path, "run"), [])


@pytest.mark.skipif(sys.platform != "linux", reason="counts file events of a forked process")
def test_killed_at_any_file_event_of_a_turn_the_pointer_is_whole_and_the_same_turn_ends_it(models):
    new, number, ended = run_in(models.folder, "0003"), 0, -signal.SIGKILL

    def turned():
        at_file_event(number, models.folder)
        models.turn(PROMOTED, new, ["better"])

    while ended != 0:
        number += 1
        ended = in_a_child(turned)
        assert ended in (0, -signal.SIGKILL)
        assert models.current in (models.folder / "0002", models.folder / "0003")
        models.repair()
        if events(models)[-1] == ("promoted", "0003", "0002"):
            assert models.current == new  # what the history says is so
            assert models.rollback() == ("0003", "0002")
    assert number > 5


def test_a_second_process_is_refused_and_the_lock_of_a_dead_one_is_taken_over(models):
    with models.alone(), pytest.raises(BusyError, match="another process is at work"), models.alone():
        pass

    def killed():
        with models.alone():
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(killed) == -signal.SIGKILL
    assert (models.folder / ".retrain.lock").exists()
    with models.alone():
        pass


def test_the_models_of_a_run_lie_beside_it_or_where_it_lies_itself(models, tmp_path):
    first = tmp_path / "first"
    assert models_of(first, None).folder == models_of(models.folder, None).folder == models.folder
    elsewhere = Models(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    elsewhere.turn(STARTED, run_in(tmp_path / "outputs", "1"), [])
    assert models_of(elsewhere.folder / "current", None).folder == elsewhere.folder
    assert models_of(models.folder / "current", None).folder == models.folder
    assert models_of(models.folder / "0001", None).folder == models.folder
    assert models_of(first, str(tmp_path / "other")).folder == tmp_path / "other"
    for run in (first, models.folder, models.folder / "current"):
        models.refuse_other(run)
    with pytest.raises(UserError, match=r"came of \.\./first, 0001 and 1 more"):
        models.refuse_other(run_in(tmp_path, "stranger"))


# --- attempts ---------------------------------------------------------------------------------------------------------

OPEN = partial(attempts.open_for, margin=0.02)


def test_an_attempt_is_gone_on_with_until_it_is_decided(models):
    first = OPEN(models, {"passages": "a"})
    assert first.folder.name == "0003"  # 0001 and 0002 were used
    assert OPEN(models, {"passages": "a"}).folder == first.folder
    first.write(decision={"promoted": False, "margin": 0.02})
    assert OPEN(models, {"passages": "a"}) is None
    assert attempts.open_for(models, {"passages": "a"}, margin=0.1).folder == first.folder
    first.write(decision={"promoted": True, "margin": 0.1})
    assert attempts.open_for(models, {"passages": "a"}, margin=0.2) is None
    assert OPEN(models, {"passages": "b"}).folder.name == "0004"


def test_other_documents_begin_an_open_attempt_again_and_keep_the_answers_that_were_paid_for(models):
    first = OPEN(models, {"passages": "a"})
    first.run.mkdir()
    first.data.mkdir()
    (first.data / "answers.jsonl").write_text("paid\n")
    (first.data / "mining.json").write_text("{}")
    again = OPEN(models, {"passages": "b"})
    assert (again.folder, again.state["asked"]) == (first.folder, {"passages": "b"})
    assert (again.data / "answers.jsonl").read_text() == "paid\n"
    assert not (again.data / "mining.json").exists()
    assert not again.run.exists()


def test_old_models_are_removed_but_for_those_that_are_kept(models):
    for name in ("0001", "0002", "0003", "0004"):
        attempts.Attempt(models.folder / "attempts" / name).write(asked={}, decision={"promoted": True})
    models.turn(PROMOTED, run_in(models.folder, "0003"), ["better"])
    run_in(models.folder, "0004")  # not promoted, the last
    assert attempts.prune(models, keep=1) == ["0001"]
    assert not (models.folder / "0001").exists()
    assert [each.folder.name for each in attempts.all_in(models)] == ["0002", "0003", "0004"]
    assert models.rollback() == ("0003", "0002")
    attempts.Attempt(models.folder / "attempts" / "0005").write(asked={}, decision={"promoted": False})
    assert attempts.prune(models, keep=1) == ["0004"]  # 0002 is served again, 0003 was before it
    assert models.current == models.folder / "0002"


def test_what_keep_does_not_keep_goes_after_a_decision_against_the_new_model_too(models):
    """So that a week without promotion leaves no run behind."""
    from embexp.results.finished import Finished
    from embexp.retrain.decision import Decision
    from embexp.retrain.retraining import _ended

    current, against = Finished(models.folder / "0002", {}), Decision(False, ["worse"], [])
    for name in ("0003", "0004"):
        attempt = attempts.Attempt(models.folder / "attempts" / name, {"asked": {}})
        run_in(models.folder, name)
        outcome = _ended(models, current, attempt, against, {"margin": 0.02, "keep": 5})
    assert outcome.removed == ["0003"]
    assert not (models.folder / "0003").exists()
    assert (models.folder / "0004").is_dir()  # the last: decided again with another margin
    assert models.current == models.folder / "0002"
