"""What is written of a result, and what a person reads of it."""

import json
import math
import tracemalloc

import numpy as np
import pytest

from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.evaluation.evaluators import Evaluation
from embexp.evaluation.significance import Scores
from embexp.reporting import report as reports
from embexp.results import result as results
from tests.hits import ranking_of


def test_result_json_is_strict_json_with_null_for_nan_and_infinity(tmp_path):
    results.write({"metric": math.nan, "part": {"scores": [1.5, math.inf, -math.inf]}, "text": "NaN"}, tmp_path)
    content = (tmp_path / "result.json").read_text()

    def refuse(name):
        raise AssertionError(name)

    read = json.loads(content, parse_constant=refuse)
    assert (read["metric"], read["part"], read["text"]) == (None, {"scores": [1.5, None, None]}, "NaN")


def test_rankings_are_written_line_by_line_and_never_whole_in_memory(tmp_path):
    names = [f"q{number}" for number in range(500)]
    hits = {name: [f"p{place}" for place in range(row % 10, row % 10 + 100)] for row, name in enumerate(names)}
    corpus = {f"p{place}": "a text" for place in range(110)}
    data = RetrievalSet(dict.fromkeys(names, "a question"), corpus, {name: {"p9": 2} for name in names}, {})
    base = Evaluation({"hit": Scores(names, np.ones(500))}, ranking_of(hits, list(corpus)))
    splits, config = Splits(data, data, data, {}), {"metric": "hit", "report_texts": False}
    peaks = []
    for _ in range(2):  # the first time it imports
        tracemalloc.start()
        results.write_retrieval({"base": base}, splits, tmp_path, config)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    lines = (tmp_path / "base.test.trec").read_text().splitlines()
    assert len(lines) == 50_000
    assert lines[:2] == ["q0 Q0 p0 1 1 base", "q0 Q0 p1 2 0.5 base"]
    assert lines[-1] == "q499 Q0 p108 100 0.00999999978 base"
    assert (tmp_path / "qrels.test.tsv").read_text() == "query-id\tcorpus-id\tscore\n" + "".join(
        f"{name}\tp9\t2\n" for name in names
    )
    assert peaks[1] < 1_000_000  # of a file of 1.5 million bytes


@pytest.mark.parametrize(
    ("documents", "p_value", "words"),
    [
        (4, 0.01, "Test has only 4 documents: too few for an interval."),
        (15, 0.01, "Test has only 15 documents: too few"),
        (19, 0.01, "Test has only 19 documents: too few"),
        (20, 0.2, "The change rests on too few documents"),
        (20, 0.01, ""),
    ],
)
def test_the_report_says_why_an_interval_without_zero_is_no_verdict(documents, p_value, words):
    delta = {"absolute": 0.1, "ci_low": 0.01, "ci_high": 0.2, "p_value": p_value, "documents": documents}
    result = {
        "metric": "recall@10", "base": {"test": {"recall@10": 0.5}}, "tuned": {"test": {"recall@10": 0.6}},
        "bm25": {"test": {}}, "counts": {"queries": {"test": 40}, "slices": {}, "steps": 100},
        "delta": {"recall@10": delta}, "verdict": "no difference", "caveat": None,
    }  # fmt: skip
    line = reports.verdict_line(result)
    assert words in line
    assert ("too few" in line) == bool(words)
    assert ("95 % interval" in line) == (documents >= 5)


@pytest.mark.parametrize(("documents", "interval"), [(4, "too few"), (5, "-0.100 to +0.300")])
def test_a_slice_of_fewer_than_five_documents_shows_no_interval(documents, interval):
    delta = {"absolute": 0.1, "ci_low": -0.1, "ci_high": 0.3, "p_value": 0.4, "documents": documents}
    part = {
        "queries": 8, "base": {"recall@10": 0.5}, "tuned": {"recall@10": 0.6}, "bm25": {"recall@10": 0.4},
        "delta": {"recall@10": {**delta, "wins": 2, "ties": 5, "losses": 1}},
    }  # fmt: skip
    table, _ = reports.slices({"metric": "recall@10", "slices": {"seen": part}, "delta": {"recall@10": delta}})
    assert table.lines[0] == ["seen (8 queries)", "0.400", "0.500", "0.600", "+0.100", interval, "2/5/1"]
