"""What is written of a result, and what a person reads of it."""

import json
import math

import pytest

from embexp import report as reports
from embexp import result as results


def test_result_json_is_strict_json_with_null_for_nan_and_infinity(tmp_path):
    results.write({"metric": math.nan, "part": {"scores": [1.5, math.inf, -math.inf]}, "text": "NaN"}, tmp_path)
    content = (tmp_path / "result.json").read_text()

    def refuse(name):
        raise AssertionError(name)

    read = json.loads(content, parse_constant=refuse)
    assert (read["metric"], read["part"], read["text"]) == (None, {"scores": [1.5, None, None]}, "NaN")


@pytest.mark.parametrize(
    ("documents", "p_value", "words"),
    [
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


@pytest.mark.parametrize(("documents", "interval"), [(4, "too few"), (5, "-0.100 to +0.300")])
def test_a_slice_of_fewer_than_five_documents_shows_no_interval(documents, interval):
    delta = {"absolute": 0.1, "ci_low": -0.1, "ci_high": 0.3, "p_value": 0.4, "documents": documents}
    part = {
        "queries": 8, "base": {"recall@10": 0.5}, "tuned": {"recall@10": 0.6}, "bm25": {"recall@10": 0.4},
        "delta": {"recall@10": {**delta, "wins": 2, "ties": 5, "losses": 1}},
    }  # fmt: skip
    table, _ = reports.slices({"metric": "recall@10", "slices": {"seen": part}, "delta": {"recall@10": delta}})
    assert table.lines[0] == ["seen (8 queries)", "0.400", "0.500", "0.600", "+0.100", interval, "2/5/1"]
