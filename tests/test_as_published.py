"""The published protocol to the letter, and that nobody can take its scores for more than they are."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from embexp.data.leaks import refuse_leaks
from embexp.datasets.as_published import CAVEAT, RowShares, load
from embexp.errors import UserError
from embexp.reporting.report import ranked_runs
from tests.command import QUICK, REPOSITORY

TOPICS = [f"topic{letter}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def articles(tmp_path):
    """26 articles of two contexts each, in the Hub's layout: 52 rows."""
    folder = tmp_path / "PubMedQA" / "pqa_labeled"
    folder.mkdir(parents=True)
    rows = [
        {
            "pubid": number,
            "question": f"Does {topic} matter?",
            "context": {"contexts": [f"Background of {topic}.", f"Results on {topic}."], "labels": ["A", "B"]},
        }
        for number, topic in enumerate(TOPICS, start=100)
    ]
    pandas.DataFrame(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder.parent


@pytest.fixture
def mined(tmp_path):
    """Questions on three of the articles, as embexp.mine writes them; article 102 got none that was kept."""
    folder = tmp_path / "published"
    folder.mkdir()
    passages = [
        {"_id": f"{article}-{place}", "title": "", "text": "as it was mined", "document": str(article)}
        for article in (100, 101, 102)
        for place in (0, 1)
    ]
    (folder / "corpus.jsonl").write_text(lines(*passages))
    questions = [  # answers come in any order
        ("b1", "101-1", "what was found in the second?"),
        ("a0", "100-0", "why was the first studied?"),
        ("b0", "101-0", "why was the second studied?"),
        ("a1", "100-1", "what was found in the first?"),
        ("a2", "100-1", "and what else was found in the first?"),
    ]
    rows = [{"_id": key, "text": text, "metadata": {"passage": passage}} for key, passage, text in questions]
    (folder / "queries.jsonl").write_text(lines(*rows))
    (folder / "mining.json").write_text(json.dumps({"content": "abc"}))
    return folder


def loaded(articles, mined, **shares):
    split = RowShares(**{"test": 0.25, "dev": 0.15, **shares})
    return load(path=str(articles), name="pqa_labeled", questions=str(mined), split=split)


def rows_of(side):
    return {(query, passage) for query in side.queries for passage in side.relevant(query)}


def test_the_last_question_of_each_article_is_asked_of_all_contexts_of_the_mined_articles(articles, mined):
    test = loaded(articles, mined).test
    assert test.queries == {"100": "and what else was found in the first?", "101": "what was found in the second?"}
    assert test.qrels == {"100": {"100-0": 1, "100-1": 1}, "101": {"101-0": 1, "101-1": 1}}
    assert test.corpus == {
        "100-0": "Background of topicaa.", "100-1": "Results on topicaa.",
        "101-0": "Background of topicbb.", "101-1": "Results on topicbb.",
        "102-0": "Background of topiccc.", "102-1": "Results on topiccc.",
    }  # fmt: skip


def test_rows_are_dealt_at_random_and_each_side_holds_its_own_contexts(articles, mined):
    splits = loaded(articles, mined)
    train, dev = rows_of(splits.train), rows_of(splits.dev)
    assert (len(train), len(dev)) == (31, 8)  # of 52: 13 are held out, 7.8 rounded are dev
    assert not train & dev
    for side in (splits.train, splits.dev):
        assert set(side.corpus) == {passage for _, passage in rows_of(side)}
        assert all(side.queries[query] == f"Does {TOPICS[int(query) - 100]} matter?" for query in side.queries)
    assert rows_of(loaded(articles, mined).train) == train
    assert rows_of(loaded(articles, mined, seed=1).train) != train
    assert len(rows_of(loaded(articles, mined, test=0, dev=0.02).train)) == 51


def test_its_splits_leak_and_its_slices_say_which_articles_train_has_a_row_of(articles, mined):
    splits = loaded(articles, mined)
    with pytest.raises(UserError, match="leak: "):
        refuse_leaks(splits, near_duplicate=0.9)
    assert splits.caveat == CAVEAT
    everything = loaded(articles, mined, test=0, dev=0.02)
    assert everything.slices == {"seen": ("100", "101")}
    nothing = loaded(articles, mined, test=0.9, dev=0.05, seed=1)  # two rows
    assert nothing.slices["unseen"]


def test_no_other_source_may_skip_the_check_for_leaks():
    users = [path.name for path in (REPOSITORY / "embexp").rglob("*.py") if "caveat=" in path.read_text()]
    assert users == ["as_published.py"]


def test_questions_that_do_not_fit_are_explained(articles, mined, tmp_path):
    with pytest.raises(UserError, match=r"has no mining.json.*preset=pubmedqa_as_published out="):
        loaded(articles, tmp_path)
    corpus = (mined / "corpus.jsonl").read_text()
    (mined / "corpus.jsonl").write_text(corpus.replace('"document": "101"', '"document": "999"'))
    with pytest.raises(UserError, match=r"1 of its 3 articles are not in pqa_labeled: 999\. Mine the same data set"):
        loaded(articles, mined)
    (mined / "corpus.jsonl").write_text("".join(corpus.splitlines(keepends=True)[:3]))
    with pytest.raises(UserError, match=r"line 1: metadata\.passage is '101-1', which is not in corpus"):
        loaded(articles, mined)
    (mined / "queries.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no question"):
        loaded(articles, mined)


@pytest.mark.parametrize("shares", [{"dev": 0}, {"test": 1}, {"test": -0.1}, {"test": 0.6, "dev": 0.5}])
def test_shares_of_rows_that_make_no_sense_are_refused(shares):
    with pytest.raises(UserError, match="they are shares of the rows"):
        RowShares(**shares)


def test_a_run_says_wherever_it_shows_scores_that_articles_leak(embexp, articles, mined):
    pytest.importorskip("wandb", reason="needs the extra embexp[wandb]")
    source = [
        f"dataset.path={articles}",
        "dataset.name=pqa_labeled",
        f"dataset.questions={mined}",
        "dataset.split.dev=0.1",
    ]
    tracked = ["logger=wandb", "logger.mode=offline"]
    run = embexp("experiment=pubmedqa_as_published", *QUICK[:-1], "limit=null", *source, *tracked)
    assert run.code == 0, run.output
    assert run.result["caveat"] == CAVEAT
    verdict = f"Verdict ({CAVEAT}): {run.result['verdict']}."
    assert verdict in run.output
    assert f"**{verdict}**" in (run.folder / "report.md").read_text()
    (kept,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    assert CAVEAT.encode() in kept.read_bytes()
    assert run.result["counts"]["queries"]["test"] == 2
    assert run.result["counts"]["paraphrases_dropped"] == 0

    base = embexp("experiment=pubmedqa_as_published", *QUICK[:2], "logger=none", "trainer=none", *source)
    assert f"Base model only ({CAVEAT}): " in base.output
    table = ranked_runs([("0", "a", run.result, "completed"), ("1", "b", base.result, "completed")])
    assert f"| {run.result['verdict']}* |" in table
    assert table.endswith(f"\n\n\\* {CAVEAT}")


def test_the_experiment_is_the_recipe(embexp):
    shown = embexp("experiment=pubmedqa_as_published", "--cfg", "job").output
    for words in ("stsb-distilbert-base", "MultipleNegativesRankingLoss", "num_train_epochs: 1", "name: pqa_artificial",
                  "per_device_train_batch_size: 64", "paraphrase: null", "questions: published"):  # fmt: skip
        assert words in shown
    assert Path(REPOSITORY / "conf" / "preset" / "pubmedqa_as_published.yaml").is_file()
