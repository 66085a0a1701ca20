"""A question to a finished run: what it shows, how, and what it refuses."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from embexp.encoding import embedding
from embexp.search import cli as search
from tests.command import QUICK, REPOSITORY


@pytest.fixture(scope="module")
def ran(tmp_path_factory, pairs):
    """A run on pairs whose path is relative to where it was started."""
    folder = tmp_path_factory.mktemp("ran")
    shutil.copy(pairs, folder / "pairs.jsonl")
    chosen = ["dataset=pairs", "dataset.path=pairs.jsonl", "dataset.columns.group=group", "trainer.learning_rate=0.1"]
    call = [sys.executable, "-m", "embexp", *QUICK, *chosen, "trainer.max_steps=30", f"hydra.run.dir={folder / 'run'}"]
    subprocess.run(call, cwd=folder, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture(scope="module")
def question(ran):
    """One of test."""
    return pd.read_parquet(ran / "retrieval" / "per_query.parquet")["query"][0]


@pytest.fixture
def asked(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*words, code=0, lines=None):
        if lines is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capfd.readouterr()
        try:
            search.main([str(word) for word in words])
            ended = 0
        except SystemExit as end:
            ended = end.code
        out, err = capfd.readouterr()
        assert ended == code, out + err
        return out if not code else err

    return call


def rankings(ran, arm):
    found = {}
    for line in (ran / "retrieval" / f"{arm}.test.trec").read_text().splitlines():
        query, _, passage, *_ = line.split()
        found.setdefault(query, []).append(passage)
    return found


def test_questions_get_the_passages_that_the_run_ranked_and_the_known_answers_place(ran, asked, pairs):
    queries = dict(pd.read_parquet(ran / "retrieval" / "per_query.parquet")[["query_id", "query"]].to_numpy())
    answers = {}
    for line in (ran / "retrieval" / "qrels.test.tsv").read_text().splitlines()[1:]:
        query, passage, _ = line.split("\t")
        answers.setdefault(query, []).append(passage)
    some = list(queries)[:4]
    lines = asked(ran, "--json", "--top", 3, lines=[queries[query] for query in some]).splitlines()
    for query, line in zip(some, map(json.loads, lines), strict=True):
        assert line["known"] == {"side": "test", "query": query, "slice": "unseen", "answers": answers[query]}
        for arm in ("base", "tuned"):
            ranked = rankings(ran, arm)[query]
            assert [hit["passage"] for hit in line[arm]["hits"]] == ranked[:3]
            (place,) = line[arm]["places"].values()
            assert ranked[place - 1 : place] == answers[query] or place > len(ranked)
        assert line["seconds"] < 1


def test_a_train_question_is_said_to_be_one_and_a_new_one_has_no_known_answer(ran, asked, pairs):
    rows = [json.loads(line)["query"] for line in pairs.read_text().splitlines()]
    known = [json.loads(line)["known"] for line in asked(ran, "--json", lines=rows).splitlines()]
    sides = {row: each["side"] for row, each in zip(rows, known, strict=True) if each}  # copies of test's were left out
    assert set(sides.values()) == {"train", "dev", "test"}
    train = next(row for row, side in sides.items() if side == "train")
    out = asked(ran, train)
    assert "a question of train, which the tuned model has learnt from; known answer: " in out
    assert "  <- known answer: " in out
    assert "\nbase (known at place " in out
    assert "not a question of the data, so that no answer is known" in asked(ran, "Something else?")


@pytest.mark.parametrize(("model", "shown"), [("base", ["base"]), ("tuned", ["tuned"]), ("both", ["base", "tuned"])])
def test_one_model_or_both_search(ran, question, asked, model, shown):
    out = asked(ran, question, "--model", model, "--top", 1)
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("base", "tuned"))] == shown


@pytest.mark.parametrize(("columns", "beside"), [(140, True), (80, False)])
def test_the_lists_stand_beside_each_other_on_a_wide_terminal_and_below_each_other_on_a_narrow_one(
    ran, question, monkeypatch, capsys, columns, beside
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    search.main([str(ran), question])
    lines = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert any("base (known" in line and "tuned (known" in line for line in lines) == beside
    assert max(map(len, lines)) <= columns


def test_in_a_file_each_passage_is_a_line_without_colours(ran, question, asked):
    out = asked(ran, question, "--top", 2)
    assert "\x1b" not in out
    assert sum(line.startswith((" 1  ", " 2  ")) for line in out.splitlines()) == 4


def test_a_prompt_takes_questions_until_ctrl_d(ran, question, asked, monkeypatch):
    typed = iter([question, "", "what is that"])

    def line(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", line)
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    out = asked(ran, "--model", "tuned", "--top", 1)
    assert [line for line in out.splitlines() if line in (question, "what is that")] == [question, "what is that"]


def test_changed_data_are_refused_by_name_unless_asked_for(ran, question, asked):
    data = ran.parent / "pairs.jsonl"
    before = data.read_text()
    try:
        data.write_text(before + json.dumps({"query": "a new one", "passage": "something new", "group": "new"}) + "\n")
        error = asked(ran, question, "--model", "tuned", code=1)
        assert "the data have changed since the run in" in error
        assert "corpus" in error
        assert "--changed-data" in error
        assert "tuned" in asked(ran, question, "--model", "tuned", "--changed-data")
        # a static base is made from the data
        assert "the base model has changed" in asked(ran, question, "--changed-data", code=1)
    finally:
        data.write_text(before)


def test_what_is_no_finished_run_is_refused_with_what_to_do(ran, question, asked, tmp_path):
    assert "is not the folder of a run" in asked(tmp_path, "x", code=1)
    assert f"It holds 1 runs: name one, such as {ran}" in asked(ran.parent, "x", code=1)
    half = shutil.copytree(ran, tmp_path / "half")
    (half / "result.json").write_text(json.dumps({"status": "failed", "error": "no luck"}))
    assert "this run was not completed, but failed (no luck)" in asked(half, "x", code=1)
    (half / "result.json").unlink()
    assert f"python -m embexp resume={half}" in asked(half, "x", code=1)
    assert "--top 0" in asked(ran, "x", "--top", 0, code=1)


def test_a_run_without_training_has_only_its_base(embexp, sources, asked):
    done = embexp("model=static", "trainer=none", "logger=none", *sources["pairs"])
    out = asked(done.folder, "what is lemon")
    assert "base" in out
    assert "tuned" not in out
    assert "has no tuned model" in asked(done.folder, "x", "--model", "tuned", code=1)


def test_a_second_call_embeds_the_corpus_from_the_cache(ran, question, asked, monkeypatch):
    asked(ran, question)
    texts = []
    real = embedding._encode
    monkeypatch.setattr(embedding, "_encode", lambda model, new, *rest: texts.extend(new) or real(model, new, *rest))
    asked(ran, question)
    assert texts == [question] * 2  # base and tuned


def test_python_m_embexp_search_is_this_command(ran, question):
    call = [sys.executable, "-m", "embexp.search", str(ran), question, "--top", "1"]
    ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert question in ended.stdout.splitlines()


@pytest.mark.parametrize(("cut", "said"), [("{}\n", True), ("", False)])
def test_passages_that_questions_were_cut_out_of_are_said_to_be_so(tmp_path, cut, said):
    (tmp_path / "cloze.jsonl").write_text(cut)
    assert search._cut_passages({"path": str(tmp_path)}) is said
    assert not search._cut_passages({})
