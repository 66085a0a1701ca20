"""Retraining from end to end: promoted, not promoted, nothing to do, rolled back, and killed at every step."""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from embexp import cli as main_command, exit_codes
from embexp.config.arguments import checked_arguments
from embexp.config.checks import CONFIG_FOLDER, plain
from embexp.data import manifest
from embexp.errors import UserError
from embexp.experiment import splits_of
from embexp.mine.mining import mine
from embexp.results.finished import opened
from embexp.retrain import attempts, cli, pointer, recipe, renewed, retraining
from tests.handbook import record, rows

QUICK = ["model=static", "model.dimension=2", "trainer=smoke", "logger=none", "limit=null", "metric=recall@3"]
LARGER = ["model.dimension=64", "trainer.max_steps=1"]  # random vectors: so many more tell passages apart
OLD, NEW = [f"old{number}" for number in range(26)], [f"new{number}" for number in range(16)]


def write_documents(folder, names):
    """A document of one section each, in words of its own."""
    folder.mkdir(exist_ok=True)
    for name in names:
        rng = random.Random(name)
        own = ["".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(4)) for _ in range(8)]
        sentences = [" ".join(["The", *rng.choices(own, k=9), "of", *rng.choices(own, k=4)]) + "." for _ in range(4)]
        (folder / f"{name}.md").write_text(f"# About {own[0]} {own[1]} {own[2]}\n\n{' '.join(sentences)}\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with documents, the data set mined from them, a run on that, and the documents of a later day."""
    folder = tmp_path_factory.mktemp("retrain")
    write_documents(folder / "documents", OLD)
    write_documents(folder / "later", [*OLD[1:], *NEW])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["embexp"])
        mine(mining("documents", "split.test=0.6", "out=mined"), folder / "mined")
        assert main_command.command(["dataset=mined", "dataset.path=mined", *QUICK, "hydra.run.dir=run"]) == 0
    return folder


def mining(places, *words):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return plain(compose("mine", [f"documents={places}", "miner=sentences", "model=static", *words]))


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of that folder, in which a test may write; the run was started in a folder that is still there."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def call(place, monkeypatch, capfd):
    def called(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["retrain", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        assert (end.value.code or 0) == code, out + err
        return out + err

    return called


def current(place):
    link = place / "models" / "current"
    assert (link / "model" / "embexp.json").is_file()  # whatever happened
    return str(link.readlink())


def state(place, number):
    return json.loads((place / "models" / "attempts" / number / "retrain.json").read_text())


def test_a_better_model_is_promoted_then_nothing_is_left_to_do_and_a_rollback_stands(call, place):
    out = call("run", "documents=later", *LARGER)
    assert current(place) == "0001"
    assert "**promoted**: better on today's test" in out
    assert "mining what is new" in out
    compared = state(place, "0001")["compared"]
    assert compared["parts"]["new"]["documents"] + compared["parts"]["old"]["documents"] >= 20
    assert compared["parts"]["all"]["new"] > compared["parts"]["all"]["current"] + 0.1

    # only what is new was mined, and all that stands kept its side
    former, now = (
        {row["_id"]: row["metadata"] for row in rows(folder / "queries.jsonl")}
        for folder in (place / "mined", place / "models" / "attempts" / "0001" / "data")
    )
    gone = [key for key in former if key not in now]
    assert {former[key]["side"] for key in former if key in now} == {"train", "dev", "unseen"}
    assert {key: former[key]["side"] for key in former if key in now} == {
        key: now[key]["side"] for key in former if key in now
    }
    lost = {row["_id"] for row in rows(place / "mined" / "corpus.jsonl") if row["document"] == "old0.md"}
    assert {former[key]["passage"] for key in gone} <= lost
    mined = record(place / "models" / "attempts" / "0001" / "data")["funnel"]["parsed"]
    assert mined == len(now.keys() - former.keys())

    # the pointer is a run to go on from, and after a rollback the same documents do not bring the model back
    assert "no passage is new or changed" in call("models/current", "documents=later")
    assert "rolled back: 0001 -> ../run" in call("rollback", "models/current")
    assert current(place) == "../run"
    assert "trained on already" in call("run", "documents=later", *LARGER)
    assert current(place) == "../run"


class Killed(BaseException):
    """In place of SIGKILL: no handler of errors sees it."""


STEPS = [  # where, and whether before or after it; in the order in which they come
    (pointer.Models, "_point", "before"), (pointer.Models, "_point", "after"), (attempts, "open_for", "after"),
    (renewed, "mine", "before"), (renewed, "mine", "after"), (retraining, "renewed", "after"),
    (main_command, "command", "before"), ("embexp.training.tuning", "save", "before"),
    ("embexp.training.tuning", "save", "after"), (main_command, "command", "after"), (retraining, "compared", "after"),
    (attempts.Attempt, "write", "before decision"), (attempts.Attempt, "write", "after decision"),
    (pointer, "write_whole", "after"), (pointer.Models, "_point", "after"),
]  # fmt: skip


def killing(monkeypatch, owner, name, when):
    """From now on a call of this dies there."""
    if isinstance(owner, str):
        owner = sys.modules[owner]
    whole = getattr(owner, name)

    def dies(*arguments, **options):
        if when.endswith("decision") and not options.get("decision"):
            return whole(*arguments, **options)
        if when.startswith("before"):
            raise Killed
        whole(*arguments, **options)
        raise Killed

    monkeypatch.setattr(owner, name, dies)


def test_killed_at_every_step_the_pointer_is_whole_and_the_same_command_goes_on(place, monkeypatch):
    run, new, trained = place / "run", place / "models" / "0001", []
    models, config = pointer.Models(place / "models"), cli._composed(["documents=later"])
    monkeypatch.setattr(sys, "argv", ["retrain"])

    def called():
        return retraining.retrain(run, models, LARGER, config)

    for number, step in enumerate(STEPS):
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, *step)
            with pytest.raises(Killed):
                called()
        assert number == 0 or (place / "models" / current(place)).resolve() in (run, new), step
        trained.append((new / "result.json").is_file())
    assert trained == sorted(trained)  # what was trained is not trained again
    assert "going on from step" in (new / "embexp.log").read_text()
    assert called().event == "nothing to do"
    assert current(place) == "0001"
    assert [line["event"] for line in models.history()] == ["started", "promoted"]
    assert state(place, "0001")["decision"]["promoted"]


def test_drift_can_say_whether_to_retrain_at_all(call, place):
    shutil.copytree(place / "documents", place / "hardly")
    write_documents(place / "hardly", NEW[:2])
    out = call("run", "documents=hardly", "if_drift=retrain")
    assert "nothing to do" in out
    assert "if_drift=retrain waits for that" in out
    assert json.loads((place / "models" / "drift.json").read_text())["verdict"] in ("ok", "watch")
    assert not (place / "models" / "attempts").exists()


def test_without_a_new_question_to_train_on_nothing_is_trained(call, place):
    shutil.copytree(place / "documents", place / "hardly")
    write_documents(place / "hardly", ["note"])
    (place / "hardly" / "note.md").write_text("# Note\n\nShort.\n\n## More\n\nSee there, or here, or ask somebody.\n")
    assert "no new question to train on" in call("run", "documents=hardly", code=5)
    assert not (place / "models" / "0001").exists()
    out = call("run", "documents=hardly")
    assert "nothing to do" in out
    assert "no new question to train on" in out
    assert "trained on already" not in out


def test_a_known_file_that_is_unreadable_today_is_not_taken_for_a_deleted_one(call, place):
    later = place / "later"
    (later / "broken.pdf").write_bytes(b"")
    (later / "old1.md").write_bytes(b"")
    (later / "old2.md").unlink()  # really gone
    out = call("run", "documents=later", *LARGER, code=1)
    assert "1 file of documents= can't be read" in out
    assert "old1.md (empty)" in out
    assert "remove them from documents= if they are really gone" in " ".join(out.split())
    assert "broken.pdf" not in out
    assert not (place / "models" / "attempts").exists()
    shutil.copyfile(place / "documents" / "old1.md", later / "old1.md")  # as it was; what the run never knew is told
    out = call("run", "documents=later", *LARGER)
    assert "Not read: broken.pdf." in out
    assert state(place, "0001")["remarks"] == ["Not read: broken.pdf."]


def test_every_mistake_is_said_at_once_and_nothing_is_made(call, place):
    out = call(
        "run", "documents=later", "loss=mnlr", "margin=2", "start=here", "queries=none.txt", "trainer.lr=1", code=1
    )
    for words in ("no such loss; did you mean mnrl", "margin=2 must be", "start=here must be base or tuned",
                  "queries=none.txt is not a file", "trainer.lr: "):  # fmt: skip
        assert words in out
    assert not (place / "models").exists()
    assert "Usage: python -m embexp.retrain RUN" in call("--help")
    assert "lies in documents=." in call("run", "documents=.", code=1)
    assert "name the run first" in call("documents=later", code=1)
    assert "holds no models" in call("rollback", "run", code=1)
    (place / "empty").mkdir()
    assert f"{place / 'empty'} holds no models" in call("status", "empty", code=1)
    assert exit_codes.OF_RETRAINING == {"promoted": 0, "nothing to do": 0, "not promoted": 5}


def test_a_data_set_that_was_not_mined_is_read_again_and_compared_on_what_nobody_learnt(call, place, sources):
    assert main_command.command([*sources["pairs"], *QUICK, "hydra.run.dir=of_pairs"]) == 0
    file = next(word for word in sources["pairs"] if word.startswith("dataset.path=")).partition("=")[2]
    today = rows(Path(file))
    today += [{"passage": row["passage"] + " today", "query": row["query"] + " now", "group": row["group"] + "-2"}
              for row in today]  # fmt: skip
    (place / "today.jsonl").write_text("".join(json.dumps(row) + "\n" for row in today))
    words = ["of_pairs", "documents=today.jsonl", "trainer.max_steps=1", "paraphrase=null"]
    assert "the data set is cut anew" in call(*words, "start=tuned", code=1)
    assert not (place / "models" / "attempts").exists()
    out = call(*words, code=5)
    assert "was not mined" in out
    assert "questions are left out: the current model was trained on them, or on their documents" in out
    assert "no longer at hand" not in out
    assert len(json.loads((place / "models" / "attempts" / "0001" / "trained.json").read_text())) > 3
    assert "attempt 0001: not promoted: " in call("status", "models=models")
    config = json.loads((place / "models" / "0001" / "result.json").read_text())["config"]
    assert config["dataset"]["path"] == str(place / "today.jsonl")
    first, attempt = opened("of_pairs"), attempts.read(place / "models" / "attempts" / "0001")
    learnt = renewed.learnt_by(first, manifest.read(first.folder), attempt)
    assert learnt == splits_of(first.config).train.queries
    shutil.copyfile(place / "today.jsonl", file)  # then it is not known, and the attempt's own still is
    assert renewed.learnt_by(first, manifest.read(first.folder), attempt) is None
    new = opened("models/0001")
    assert renewed.learnt_by(new, manifest.read(new.folder), attempt) == splits_of(new.config).train.queries


@pytest.mark.parametrize(("code", "completed"), [(0, True), (exit_codes.FORGOTTEN, True), (1, False)])
def test_a_completed_run_that_has_forgotten_too_much_goes_on_to_the_decision(place, monkeypatch, code, completed):
    """The gate's own code is no failure; a run that failed is one."""

    def run(_):
        shutil.copytree(place / "run", place / "models" / "0001")
        return [code]

    monkeypatch.setattr(sys, "argv", ["retrain"])
    monkeypatch.setattr(main_command, "_run", run)
    old, attempt = opened("run"), attempts.Attempt(place / "models" / "attempts" / "0001", {})
    if not completed:
        with pytest.raises(UserError, match="failed, as said above"):
            retraining._trained(old, attempt, recipe.Recipe((), ()), [], [])
    else:
        new = retraining._trained(old, attempt, recipe.Recipe((), ()), [], [])
        assert new.folder == place / "models" / "0001"


def test_a_data_set_that_was_mined_again_into_its_folder_is_not_gone_on_from(place, made):
    first = opened("run")
    known = manifest.read(first.folder)
    assert renewed.former_of(first, known, []) == made / "mined"  # a run's paths are of where it was started
    first = replace(first, result={**first.result, "fingerprint": {**first.result["fingerprint"], "train": "other"}})
    with pytest.raises(UserError, match=r"the data have changed since the run in .*: train"):
        renewed.former_of(first, known, [])


EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def commands_of(name):
    """The words of each call of the command in an example; YAML is parsed as its reader would."""
    text = (EXAMPLES / name).read_text()
    if name.endswith(".cron"):
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert all(re.match(r"(\S+\s+){5}\S", line) for line in lines)
    else:
        lines = []
        waiting = [yaml.safe_load(text)]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict):
                waiting += node.values()
            elif isinstance(node, list) and all(isinstance(each, str) for each in node):
                lines.append(shlex.join(node))
            elif isinstance(node, list):
                waiting += node
            elif isinstance(node, str):
                lines += node.splitlines()
    found = [re.search(r"python -m embexp\.retrain ([^|>&]*)", line) for line in lines]
    return [shlex.split(each[1]) for each in found if each]


@pytest.mark.parametrize(
    ("name", "count"), [("retrain.cron", 1), ("retrain-github-actions.yaml", 2), ("retrain-kubernetes.yaml", 1)]
)
def test_the_commands_of_an_example_are_ones_that_embexp_takes(name, count):
    found = commands_of(name)
    assert len(found) == count
    for words in found:
        if words[0] in cli.ACTIONS:
            assert len(words) == 2
            continue
        own, further = recipe.divided(words[1:], cli.RETRAIN.root)
        config = cli._composed(own)
        assert config["documents"].endswith("handbook")
        assert not further or checked_arguments(further, config_dir=None, sweep=False)


def test_the_exit_codes_of_the_examples_are_those_of_the_command():
    job = yaml.safe_load((EXAMPLES / "retrain-kubernetes.yaml").read_text())["spec"]["jobTemplate"]["spec"]
    (shell, flag, line) = job["template"]["spec"]["containers"][0]["command"]
    for code, ended in ((0, 0), (exit_codes.OF_RETRAINING["not promoted"], 0), (1, 1), (137, 1)):
        put = re.sub(r"python -m embexp\.retrain [^|]*", f"(exit {code}) ", line)
        assert subprocess.run([shell, flag, put], check=False).returncode == ended, put
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # which podFailurePolicy needs
    for name in ("retrain.cron", "retrain-github-actions.yaml"):
        assert re.search(rf"-eq {exit_codes.OF_RETRAINING['not promoted']}\b", (EXAMPLES / name).read_text())
