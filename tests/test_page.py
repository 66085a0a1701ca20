"""report.html as a file: what it says, what it lets in, and that it never stands in a run's way."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import sys

import pytest

from embexp.page.document import data, strong
from embexp.page.figures import Point, curve, deltas
from embexp.page.queries import read, table
from embexp.page.writing import make, write
from tests.command import QUICK, separate
from tests.folders import per_query, run_folder

TAKE = "document.documentElement.lang = 'taken'"
HOSTILE = f'</script><script>{TAKE}</script><img src=x onerror="{TAKE}">'
EXAMPLES = {
    "improved": ["q1"], "harmed": ["q0"], "depth": 100,
    "rankings": {
        "q1": {"base": [["p2", 1, False], ["p1", 33, True]], "tuned": [["p1", 1, True]]},
        "q0": {"base": [["p2", 1, False]], "tuned": [["p3", 1, False]]},
    },
    "texts": {"queries": {"q1": HOSTILE, "q0": "plain"}, "passages": {"p1": HOSTILE, "p2": "two", "p3": "three"}},
}  # fmt: skip


def made(folder, **options):
    """The page of a run folder made by hand, with examples and queries of strangers."""
    run_folder(folder, scores=per_query([0, 0.5, 1, 1], [0.5, 0.5, 1, 0], texts=[HOSTILE, "b", "c", "d"]), **options)
    (folder / "retrieval" / "examples.json").write_text(json.dumps(EXAMPLES))
    return make(folder).read_text()


def test_a_run_leaves_a_page_with_its_verdict_scores_and_examples(embexp, sources):
    run = embexp(*QUICK, *sources["pairs"], "trainer.learning_rate=0.1", "trainer.max_steps=30")
    text = (run.folder / "report.html").read_text()
    assert f"<strong>Verdict: {run.result['verdict']}.</strong>" in text
    for metric in ("recall", "ndcg"):
        assert f'role="img" aria-labelledby="scores-{metric}-title scores-{metric}-desc"' in text
    assert "Most improved" in text
    assert "what is word" in text
    assert len(text) < 500_000
    assert str(run.folder / "report.html") in run.output


def test_texts_may_be_kept_out_of_the_run_folder(embexp, sources):
    arguments = [*QUICK, *sources["pairs"], "trainer.learning_rate=0.1", "trainer.max_steps=30", "report_texts=false"]
    run = embexp(*arguments)
    assert run.code == 0, run.output
    assert (run.folder / "report.html").is_file()
    kept = json.loads((run.folder / "retrieval" / "examples.json").read_text())
    assert kept["improved"]
    assert kept["texts"] == {}
    for file in (path for path in run.folder.rglob("*") if path.is_file() and "model" not in path.parts):
        content = file.read_bytes()
        assert b"All about word" not in content, file  # of a passage
        assert b"what is word" not in content, file  # of a question


def test_the_page_lets_only_its_own_style_and_script_in(tmp_path):
    text = made(tmp_path / "run")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(policy).split(";"))
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    addresses = set(re.findall(r"(?:https?:)?//[\w./-]+", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, which nobody asks for
    assert not re.search(r"<[^>]* style=", text)


def test_hostile_texts_stay_text(tmp_path):
    text = made(tmp_path / "run", error=None, notes=[HOSTILE], names={"model": HOSTILE})
    assert "<img" not in text
    assert text.count("<script>") == 1
    assert "&lt;/script&gt;&lt;script&gt;" in text
    assert r"\u003c/script\u003e" in text


def test_data_for_the_script_holds_no_sign_that_ends_a_tag():
    assert data(["</script>", "&", "é"]) == '["\\u003c/script\\u003e","\\u0026","é"]'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("**a** b", "<strong>a</strong> b"),
        ("0.1 -> 0.2 **<b>**", "0.1 → 0.2 <strong>&lt;b&gt;</strong>"),
        ("2**3", "2**3"),
    ],
)
def test_stressed_words_are_strong_and_everything_is_escaped(text, shown):
    assert strong(text) == shown


def test_examples_show_both_sides_with_the_right_passage_marked(tmp_path):
    text = made(tmp_path / "run")
    first = text[text.index("Most improved") : text.index("Most harmed")]
    assert "rank 33 → 1" in first
    assert first.count("✓ right") == 2  # at 33 before and first after
    assert "33. p1" in first
    second = text[text.index("Most harmed") : text.index('id="queries"')]
    assert "rank beyond 100 → beyond 100" in second
    assert "✓ right" not in second


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("failed", "This run failed: it failed, said line one"),
        ("pruned", "This run was pruned: it pruned"),
        (None, "<strong>No result yet.</strong>"),
    ],
)
def test_a_run_that_has_not_completed_has_a_page_too(tmp_path, status, words):
    text = make(run_folder(tmp_path / "run", status=status)).read_text()
    assert words in text
    assert "training loss" in text


def test_a_run_that_failed_before_it_measured_anything_has_a_page(tmp_path):
    nothing = {
        "base": None,
        "bm25": None,
        "tuned": None,
        "delta": None,
        "slices": None,
        "counts": {},
        "fingerprint": {},
    }
    text = make(run_folder(tmp_path / "run", status="failed", **nothing)).read_text()
    assert "This run failed" in text
    assert "Scores on" not in text


def test_a_trial_shows_dev_and_nothing_of_test(tmp_path):
    text = make(run_folder(tmp_path / "run", test=None, dev=0.7)).read_text()
    assert "Scores on dev" in text
    assert "0.700" in text
    assert "Test is for the winner" in text


def test_a_worse_model_is_said_first_and_without_a_sign_of_success(tmp_path):
    text = make(run_folder(tmp_path / "run", dev=0.2, test=0.6)).read_text()
    first = text[text.index('<div class="verdict') : text.index("<strong>Verdict")]
    assert "worse than the base on dev" in first.partition("<p><span")[0]
    assert 'class="sign"' not in first.partition("</p>")[0]


def test_an_error_in_the_page_is_logged_and_no_error_of_the_run(tmp_path, caplog, monkeypatch):
    folder = run_folder(tmp_path / "run")

    def broken(run):
        raise RuntimeError("no such font")

    monkeypatch.setattr("embexp.page.content.of", broken)
    write(folder)
    assert not (folder / "report.html").exists()
    assert "report.html could not be written: RuntimeError: no such font" in caplog.text


def test_a_backend_that_is_none_costs_a_run_its_page_alone(tmp_path, pairs_file):
    data = ["dataset=pairs", f"dataset.path={pairs_file}", "dataset.columns.group=group"]
    environment = os.environ | {"MPLBACKEND": "nonsense"}
    run = tmp_path / "run"
    ended = separate(*QUICK, "trainer=none", *data, f"hydra.run.dir={run}", folder=tmp_path, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((run / "result.json").read_text())["status"] == "completed"
    assert "report.html could not be written: ValueError" in ended.stdout + ended.stderr
    assert not (run / "report.html").exists()


def test_an_attempt_removes_the_former_page_with_the_former_result(embexp, sources, monkeypatch):
    def interrupted(run, processes):
        raise KeyboardInterrupt

    run = embexp(*QUICK, *sources["pairs"], "trainer=none")
    (run.folder / "metrics.jsonl").unlink(missing_ok=True)
    monkeypatch.setattr("embexp.run.measure", interrupted)
    embexp(*QUICK, *sources["pairs"], "trainer=none", f"hydra.run.dir={run.folder}")
    assert [(run.folder / name).exists() for name in ("result.json", "report.html")] == [False, False]


def test_a_broken_table_of_scores_leaves_out_its_part(tmp_path):
    folder = run_folder(tmp_path / "run", scores=per_query([0.0], [1.0]))
    (folder / "retrieval" / "per_query.parquet").write_bytes(b"PAR1 torn")
    (folder / "retrieval" / "examples.json").write_text('{"improved": [')
    text = make(folder).read_text()
    assert "All queries" not in text
    assert "Verdict" in text


def test_the_table_has_ranks_and_the_most_changed_queries_first(tmp_path):
    folder = run_folder(tmp_path / "run", scores=per_query([0.5, 1.0, 0.25], [0.5, 0.0, 1.0]))
    shown = table(read(folder), metric="recall@10")
    assert [name for name, _ in shown["columns"]] == [
        "query", "slice", "base rank", "tuned rank", "BM25 rank", "change of recall@10", "since training",
    ]  # fmt: skip
    assert shown["rows"] == [
        ["what is q1", "unseen", 1, None, None, -1.0, "worse"],
        ["what is q2", "unseen", 4, 1, None, 0.75, "better"],
        ["what is q0", "unseen", 2, 2, None, 0.0, "same"],
    ]
    assert (shown["of"], shown["depth"]) == (3, 100)


def test_the_metric_goes_before_the_rank_in_the_table_as_in_the_examples(tmp_path):
    scores = per_query([0.0, 0.0, 1.0], [0.0, 0.0, 1.0])
    scores["tuned.mrr@100"] = [0.04, 0.5, 0.1]  # ranks 25, 2 and 10; they were below, below and 1
    scores["tuned.recall@10"] = [0.0, 1.0, 1.0]
    shown = table(read(run_folder(tmp_path / "run", scores=scores)), metric="recall@10")
    columns = [name for name, _ in shown["columns"]]
    found = [dict(zip(columns, row, strict=True)) for row in shown["rows"]]
    assert [(row["query"], row["change of recall@10"], row["since training"]) for row in found] == [
        ("what is q1", 1.0, "better"), ("what is q2", 0.0, "worse"), ("what is q0", 0.0, "better"),
    ]  # fmt: skip


def test_the_tiles_count_the_queries_that_the_scores_are_over_and_the_caveat_is_said(tmp_path):
    folder = run_folder(tmp_path / "run", caveat="as published, with leaks")
    result = json.loads((folder / "result.json").read_text())
    result["counts"]["slices"] = {"unseen": 33, "paraphrase": 7}
    (folder / "result.json").write_text(json.dumps(result))
    text = make(folder).read_text()
    assert "recall@10 on test, 33 queries" in text
    assert "40 queries" not in text
    assert "<strong>Verdict (as published, with leaks): better.</strong>" in text


def test_a_page_of_twenty_thousand_queries_stays_small_and_keeps_the_most_changed(tmp_path):
    tuned = [1.0 if place == 19_999 else 0.5 for place in range(20_000)]
    folder = run_folder(tmp_path / "run", scores=per_query([0.5] * 20_000, tuned, texts=["word " * 40] * 20_000))
    shown = table(read(folder), metric="recall@10")
    assert shown["of"] == 20_000
    assert 1_000 < len(shown["rows"]) < 20_000
    assert shown["rows"][0][-1] == "better"
    assert make(folder).stat().st_size < 1_000_000


def test_the_interval_of_a_score_leaves_paraphrases_out(tmp_path):
    scores = per_query([0.5, 0.5, 0.6, 0.6, 0.4, 0.4, 0.0, 0.0], [0.0] * 8)
    scores.loc[6:, "slice"] = "paraphrase"
    # three documents of 0.5, 0.6 and 0.4: 0.5 -+ 4.303 * 0.1 / sqrt(3)
    expected = pytest.approx((0.5 - 0.2484, 0.5 + 0.2484), abs=1e-4)
    assert read(run_folder(tmp_path / "a", scores=scores)).interval("base.recall@10") == expected
    assert read(run_folder(tmp_path / "b", scores=scores[:2])).interval("base.recall@10") is None  # one document


def test_the_command_writes_pages_and_names_what_is_no_run(tmp_path, monkeypatch, capsys):
    from embexp.page.__main__ import main

    run_folder(tmp_path / "runs" / "0", counts=[])  # which no run writes
    run_folder(tmp_path / "runs" / "1")
    broken = run_folder(tmp_path / "runs" / "2")
    (broken / "result.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["page", str(tmp_path / "runs"), str(tmp_path / "none")])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 1
    assert said.out == f"{tmp_path / 'runs' / '1' / 'report.html'}\n"
    assert "result.json can't be read" in said.err
    assert "none is not a folder" in said.err
    assert f"embexp: {tmp_path / 'runs' / '0'}: " in said.err


def test_the_page_names_no_folder_of_the_machine_beside_what_the_config_has(tmp_path):
    for status in ("completed", None):
        text = make(run_folder(tmp_path / "runs" / str(status), status=status)).read_text()
        assert str(tmp_path) not in text
        assert f"· {status} · written" in text


def texts_of(svg):
    return [re.sub("\u2212", "-", text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_numbers_that_a_person_reads_keep_their_digits_and_places_lose_theirs():
    svg = curve("loss", "loss", [(0, 0.0049), (1, 0.0012)], best=None, says="from 0.749 at step 0")
    ticks = [text for text in texts_of(svg) if text.startswith("0.00")]
    assert len(ticks) > 3
    assert len(set(ticks)) == len(ticks)
    assert "from 0.749 at step 0</desc>" in svg
    changes = deltas("change", "recall", {1: Point(0.0049), 3: Point(0.0012)}, says="+0.005 at 1")
    assert {float(text) for text in texts_of(changes) if "." in text} >= {0.002, 0.003, 0.004}
    places = " ".join(re.findall(r' (?:d|x|y|transform|points)="([^"]*)"', svg + changes))
    assert re.search(r"\d\.\d{2}\b", places)
    assert not re.search(r"\d\.\d{3}", places)
