"""A checkpoint is used only when every file is as it was when it was sealed."""

from __future__ import annotations

import json

import pytest

from embexp.errors import UserError
from embexp.training.checkpoints import SEAL, is_whole, last_usable, path_of, rotate, seal


def checkpoint(folder, step, *, best=None, made_from="data", ended=False):
    made = path_of(folder, step)
    (made / "1_Dense").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights" * step)
    (made / "1_Dense" / "config.json").write_text("{}")
    (made / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
    seal(made, made_from=made_from, ended=ended)
    return made


def steps(folder):
    return sorted(int(path.name.rpartition("-")[2]) for path in (folder / "checkpoints").iterdir())


def cut_short(made):
    file = made / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lose_a_file(made):
    (made / "1_Dense" / "config.json").unlink()


def tear_the_seal(made):
    (made / SEAL).write_text((made / SEAL).read_text()[:-5])


def never_seal(made):
    (made / SEAL).unlink()


@pytest.mark.parametrize("damage", [cut_short, lose_a_file, tear_the_seal, never_seal])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, damage):
    checkpoint(tmp_path, 5)
    last = checkpoint(tmp_path, 10)
    assert is_whole(last)
    damage(last)
    assert not is_whole(last)
    assert last_usable(tmp_path, made_from="data").step == 5
    assert steps(tmp_path) == [5]


def test_the_last_by_number_is_used_and_knows_whether_training_was_over(tmp_path):
    for step in (9, 10, 100):
        checkpoint(tmp_path, step, ended=step == 100)
    found = last_usable(tmp_path, made_from="data")
    assert (found.step, found.ended) == (100, True)


def test_one_whose_best_predecessor_is_damaged_is_not_used(tmp_path):
    checkpoint(tmp_path, 5, best=5)
    checkpoint(tmp_path, 10, best=10)
    checkpoint(tmp_path, 15, best=10)
    cut_short(path_of(tmp_path, 10))
    assert last_usable(tmp_path, made_from="data").step == 5


def test_the_best_predecessor_is_kept_beside_the_last(tmp_path):
    checkpoint(tmp_path, 5, best=5)
    checkpoint(tmp_path, 10, best=10)
    checkpoint(tmp_path, 15, best=5)
    assert last_usable(tmp_path, made_from="data").step == 15
    assert steps(tmp_path) == [5, 15]


def test_a_run_without_a_whole_checkpoint_starts_again(tmp_path):
    assert last_usable(tmp_path, made_from="data") is None
    cut_short(checkpoint(tmp_path, 5))
    assert last_usable(tmp_path, made_from="data") is None
    assert steps(tmp_path) == []


def test_other_data_or_another_base_is_refused(tmp_path):
    checkpoint(tmp_path, 5)
    with pytest.raises(UserError, match="the data, the base model or one that helps to train it"):
        last_usable(tmp_path, made_from="other data")
    assert steps(tmp_path) == [5]


def test_the_best_of_each_checkpoint_that_stays_does_too(tmp_path):
    for step, best in ((10, 10), (20, 10), (30, 30)):
        checkpoint(tmp_path, step, best=best)
    rotate(tmp_path, keep=2, best=30)
    cut_short(path_of(tmp_path, 30))
    assert last_usable(tmp_path, made_from="data").step == 20


@pytest.mark.parametrize(("keep", "best", "left"), [(2, 5, [5, 15, 20]), (1, 20, [20]), (3, None, [10, 15, 20])])
def test_old_checkpoints_go_but_the_best_stays(tmp_path, keep, best, left):
    for step in (5, 10, 15, 20):
        checkpoint(tmp_path, step)
    rotate(tmp_path, keep=keep, best=best)
    assert steps(tmp_path) == left


def test_without_a_limit_all_stay(tmp_path):
    for step in (5, 10):
        checkpoint(tmp_path, step)
    rotate(tmp_path, keep=None, best=None)
    assert steps(tmp_path) == [5, 10]
