"""A trial from the side of its run: reports, pruning, who has it, how it ends; and when dev is looked at."""

import math
import time
import warnings
from types import SimpleNamespace

import pytest
from optuna.pruners import MedianPruner
from optuna.trial import TrialState

from embexp.errors import BusyError, Pruned
from embexp.sweep import trial as trials
from embexp.sweep.lease import BEAT, PROCESS, this_process
from embexp.sweep.reference import Address, TrialReference
from embexp.sweep.trial import REASON, RESULT, SUPERSEDED, Trial, attached, measured
from embexp.training.callbacks import Looks
from tests.studies import FORK, asked, mark, states, study_in

MEDIAN = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 0}


def reference(folder, number, owner, *, objectives=("metric",), pruner=None, lease=60.0, confirms=False):
    return TrialReference(
        Address(str(folder)), "test", number, owner, objectives, "recall@10", 2, pruner, lease, confirms=confirms
    )


@pytest.fixture
def study(tmp_path):
    return study_in(tmp_path)


@pytest.fixture
def handed_out(study, tmp_path):
    """Makes the reference of a trial that has just been asked for."""

    def make(**options):
        trial, owner = asked(study)
        return reference(tmp_path, trial.number, owner, **options)

    return make


def result_of(status="completed", *, dev=0.75, **further):
    """The content of a result.json, as far as a study reads it."""
    return {
        "status": status, "metric": "recall@10", "seconds": {"data": 1.0, "training": 2.04},
        "base": {"dev": {"recall@10": 0.5}, "test": None}, "delta": None, "verdict": None, "counts": {"dimensions": 16},
        "tuned": {"dev": {"recall@10": dev, "ndcg@10": 0.25}, "test": None} if status == "completed" else None,
        "bm25": {"dev": {"recall@10": 0.25}, "test": None}, "notes": ["a remark"],
        **further,
    }  # fmt: skip


TOLD = {"metric": "recall@10", "seconds": 3.0, "base": 0.5, "bm25": 0.25, "notes": ["a remark"]}  # of every run


# reports


def test_a_trial_that_is_worse_than_the_median_at_the_same_look_is_given_up_with_its_reason(study, handed_out):
    for value in (0.5, 0.6, 0.7):
        ended = handed_out(pruner=MEDIAN)
        Trial(ended).report({"recall@10": value, "ndcg@10": 0.0}, 1)
        study.as_optuna.tell(ended.number, value)
    better, worse = Trial(handed_out(pruner=MEDIAN)), Trial(handed_out(pruner=MEDIAN))
    better.report({"recall@10": 0.61, "ndcg@10": 0.0}, 1)
    with pytest.raises(Pruned, match=r"given up at look 1 at dev \(recall@10 0\.590\): others did better"):
        worse.report({"recall@10": 0.59, "ndcg@10": 1.0}, 1)
    assert [trial.intermediate_values for trial in study.trials()[3:]] == [{1: 0.61}, {1: 0.59}]


def test_a_trial_without_a_pruner_is_never_given_up_whatever_optunas_own_choice_would_do(study, handed_out):
    for _ in range(8):  # Optuna's is the median after five trials
        ended = handed_out()
        Trial(ended).report({"recall@10": 0.9}, 1)
        study.as_optuna.tell(ended.number, 0.9)
    Trial(handed_out()).report({"recall@10": 0.0}, 1)
    assert MedianPruner().prune(study.as_optuna, study.trials()[8])  # so it would


def test_a_resumed_trial_does_not_report_a_look_twice(study, handed_out):
    given = handed_out()
    Trial(given).report({"recall@10": 0.3}, 1)
    again = Trial(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna's, of a step that was reported before
        again.report({"recall@10": 0.9}, 1)
    again.report({"recall@10": 0.4}, 2)
    assert study.trials()[0].intermediate_values == {1: 0.3, 2: 0.4}


def test_a_resumed_trial_is_given_up_at_the_look_at_which_it_was_given_up_before(study, handed_out):
    ended = handed_out(pruner=MEDIAN)
    Trial(ended).report({"recall@10": 0.5}, 1)
    study.as_optuna.tell(ended.number, 0.5)
    given = handed_out(pruner=MEDIAN)
    for _ in range(2):  # killed before it could tell
        with pytest.raises(Pruned):
            Trial(given).report({"recall@10": 0.1}, 1)


def test_a_confirming_run_reports_nothing_and_is_scored_on_test(study, handed_out):
    trial = Trial(handed_out(pruner=MEDIAN, confirms=True))
    trial.report({"recall@10": 0.3}, 1)
    assert study.trials()[0].intermediate_values == {}
    assert trial.scores_test
    assert not Trial(handed_out()).scores_test


def test_with_several_objectives_nothing_is_reported(tmp_path):
    study = study_in(tmp_path, directions=("maximize", "minimize"))
    trial, owner = asked(study)
    watch = Trial(reference(tmp_path, trial.number, owner, objectives=("metric", "dimensions")))
    watch.report({"recall@10": 0.3}, 1)
    watch.tell(result_of(dev=0.5))
    assert study.trials()[0].values == [0.5, 16.0]


# how it ends


def test_a_completed_result_is_told_with_its_dev_score(study, handed_out):
    Trial(handed_out()).tell(result_of(dev=0.75))
    (trial,) = study.trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.75)
    assert trial.user_attrs[RESULT] == {**TOLD, "status": "completed", "dev": 0.75}


def test_a_pruned_result_is_told_as_pruned_with_the_last_look(study, handed_out):
    trial = Trial(handed_out())
    trial.report({"recall@10": 0.2}, 1)
    trial.report({"recall@10": 0.3}, 2)
    trial.tell(result_of("pruned"))
    (told,) = study.trials()
    assert (told.state, told.value) == (TrialState.PRUNED, 0.3)
    assert told.user_attrs[RESULT] == {**TOLD, "status": "pruned"}


def test_a_confirming_result_is_told_with_its_delta_on_test(study, handed_out):
    delta = {"absolute": 0.25, "relative": 0.5, "ci_low": 0.1, "ci_high": 0.4, "p_value": 0.01, "wins": 3}
    result = result_of(delta={"recall@10": delta}, verdict="better")
    result["base"]["test"], result["tuned"]["test"] = {"recall@10": 0.5}, {"recall@10": 0.75}
    Trial(handed_out(confirms=True)).tell(result)
    shown = study.trials()[0].user_attrs[RESULT]
    expected = {"absolute": 0.25, "ci_low": 0.1, "ci_high": 0.4, "p_value": 0.01, "base": 0.5, "tuned": 0.75}
    assert shown["test"] == expected
    assert shown["verdict"] == "better"


def test_objectives_are_read_from_the_result():
    result = result_of(dev=0.75)
    assert measured(result, "metric") == 0.75
    assert measured(result, "ndcg@10") == 0.25
    assert measured(result, "dimensions") == 16
    assert measured(result, "training_seconds") == 2.04
    shortened = {**result, "metric": "dim8.recall@10"}
    assert measured(shortened, "dimensions") == 8


def test_an_error_in_the_run_fails_the_trial_with_its_reason(study, handed_out):
    with pytest.raises(ValueError, match="a bug"), attached(handed_out()):
        raise ValueError("a bug")
    assert states(study) == [TrialState.FAIL]
    assert study.trials()[0].user_attrs[REASON] == "ValueError: a bug"


def test_a_reason_is_kept_short(study, handed_out):
    Trial(handed_out()).fail("x" * 5000)
    assert study.trials()[0].user_attrs[REASON] == "x" * 2000


@pytest.mark.parametrize("error", [BusyError("its folder is taken"), KeyboardInterrupt()])
def test_an_interrupted_trial_is_left_as_it_is_for_the_next(study, handed_out, error):
    with pytest.raises(type(error)), attached(handed_out()):
        raise error
    assert states(study) == [TrialState.RUNNING]


def test_the_process_that_runs_a_trial_is_known_and_beats(study, handed_out):
    given = handed_out(lease=0.2)
    mark(study, 0, PROCESS, {**this_process(), "pid": 1})  # the sweeper, which may be elsewhere
    with attached(given):
        assert study.trials()[0].user_attrs[PROCESS] == this_process()
        first = study.trials()[0].user_attrs[BEAT]
        time.sleep(0.3)
        assert study.trials()[0].user_attrs[BEAT] > first


# who has it


def ends_with(function, *arguments):
    """The exit code of a process that calls the function; 0 when it returns."""
    process = FORK.Process(target=function, args=arguments)
    process.start()
    process.join(30)
    return process.exitcode


def take(given):
    Trial(given).take()


def tell(given):
    Trial(given).tell(result_of(dev=1.0))


def fail(given):
    Trial(given).fail("too late")


@pytest.mark.parametrize("act", [take, tell, fail])
def test_a_process_whose_trial_was_given_to_another_ends_with_75_and_tells_nothing(study, handed_out, act):
    given = handed_out()
    study.release(0, given.owner)
    waiting = ends_with(act, given)
    _, other = asked(study)
    assert (waiting, ends_with(act, given)) == (SUPERSEDED, SUPERSEDED) == (75, 75)
    assert states(study) == [TrialState.RUNNING]
    assert study.trials()[0].user_attrs.keys().isdisjoint({RESULT, REASON})
    study.fail(0, other, "ended")
    assert ends_with(act, given) == SUPERSEDED


def work(given):
    with attached(given):
        time.sleep(30)


def test_a_process_at_work_notices_by_its_next_beat_that_another_has_its_trial(study, handed_out):
    given = handed_out(lease=0.4)
    process = FORK.Process(target=work, args=(given,))
    process.start()
    while study.trials()[0].user_attrs[PROCESS]["pid"] != process.pid:
        time.sleep(0.01)
    time.sleep(0.3)
    assert process.is_alive()
    study.release(0, given.owner)
    asked(study)
    start = time.monotonic()
    process.join(10)
    assert process.exitcode == SUPERSEDED
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("end", [lambda trial: trial.tell(result_of()), lambda trial: trial.fail("a bug")])
def test_a_beat_after_the_trial_was_told_does_not_end_the_process(handed_out, monkeypatch, end):
    trial = Trial(handed_out())
    end(trial)
    monkeypatch.setattr(trials.os, "_exit", lambda code: pytest.fail(f"ended with {code}"))
    trial.beat()


@pytest.mark.parametrize(("told", "codes"), [(True, []), (False, [SUPERSEDED])])
def test_a_trial_that_ends_in_the_middle_of_a_beat_ends_the_process_unless_it_was_told_here(
    study, handed_out, monkeypatch, told, codes
):
    given = handed_out()
    trial, ends = Trial(given), []
    monkeypatch.setattr(trials.os, "_exit", ends.append)
    monkeypatch.setattr(trial, "_is_mine", lambda: True)  # as it was a moment ago
    if told:
        trial.tell(result_of())
    else:
        study.fail(0, given.owner, "ended from outside")
    trial.beat()
    assert ends == codes


def test_a_storage_that_is_away_for_a_while_costs_a_warning(study, handed_out, monkeypatch, caplog):
    trial = Trial(handed_out())

    def gone(*_):
        raise OSError("server closed the connection\nmore")

    with monkeypatch.context() as away:
        away.setattr(trial._storage, "set_trial_user_attr", gone)
        trial.beat()
    assert "the trial's lease could not be renewed (server closed the connection); trying again" in caplog.text
    trial.beat()
    assert BEAT in study.trials()[0].user_attrs


# when dev is looked at


class Seen:
    """What a watch was told, after which step."""

    scores_test = False

    def __init__(self, looks):
        self.looks, self.told = looks, []

    def report(self, metrics, look):
        self.told.append((look, metrics))


def trained(watch, *, rows, batch, epochs=1.0, start=0):
    """Steps after which a training of so many rows looks at dev, as the trainer calls its callbacks."""
    per_epoch = math.ceil(rows / batch)
    callback, last = Looks(watch.looks, watch), math.ceil(epochs * per_epoch)
    state = SimpleNamespace(epoch=start / per_epoch, global_step=start, max_steps=last)
    callback.on_train_begin(None, state, SimpleNamespace())
    looked = []
    for step in range(start + 1, last + 1):
        control = SimpleNamespace(should_evaluate=False, should_save=False)
        state.epoch, state.global_step = step / per_epoch, step
        callback.on_step_end(None, state, control)
        assert control.should_evaluate == control.should_save  # a checkpoint for each, to pick the best from
        if control.should_evaluate:
            looked.append(step)
            callback.on_evaluate(None, state, control, metrics={"eval_recall@10": step / 100, "epoch": state.epoch})
    return looked


@pytest.mark.parametrize(
    ("looks", "batch", "steps", "samples"),
    [
        (2, 8, [5, 10], [40, 80]),
        (2, 10, [4, 8], [40, 80]),
        (2, 20, [2, 4], [40, 80]),
        (2, 32, [2, 3], [64, 80]),  # three batches an epoch: to within a batch
        (4, 8, [3, 5, 8, 10], [24, 40, 64, 80]),
        (1, 8, [10], [80]),
        (3, 27, [1, 2, 3], [27, 54, 80]),  # thirds, which no float holds
    ],
)
def test_looks_come_after_equal_shares_of_an_epoch_whatever_the_batch_size(looks, batch, steps, samples):
    watch = Seen(looks)
    assert trained(watch, rows=80, batch=batch) == steps
    assert [min(80, step * batch) for step in steps] == samples
    assert [look for look, _ in watch.told] == [*range(1, looks + 1)]


def test_looks_are_counted_on_over_the_epochs_and_told_under_their_names():
    watch = Seen(2)
    assert trained(watch, rows=80, batch=8, epochs=3) == [5, 10, 15, 20, 25, 30]
    assert [look for look, _ in watch.told] == [1, 2, 3, 4, 5, 6]
    assert watch.told[1] == (2, {"recall@10": 0.1, "epoch": 1.0})


def test_the_last_step_is_always_looked_at_and_told_only_where_a_look_is_due():
    watch = Seen(2)
    assert trained(watch, rows=80, batch=8, epochs=0.7) == [5, 7]
    assert [look for look, _ in watch.told] == [1]


def test_a_batch_that_holds_an_epoch_is_told_as_the_epochs_last_look():
    watch = Seen(2)
    assert trained(watch, rows=8, batch=8, epochs=2) == [1, 2]
    assert [look for look, _ in watch.told] == [2, 4]


@pytest.mark.parametrize(("start", "steps", "told"), [(5, [10], [2]), (7, [10], [2]), (4, [5, 10], [1, 2])])
def test_a_resumed_run_takes_up_at_the_right_look(start, steps, told):
    watch = Seen(2)
    assert trained(watch, rows=80, batch=8, start=start) == steps
    assert [look for look, _ in watch.told] == told


def test_looks_are_the_references(handed_out):
    assert Trial(handed_out()).looks == 2
