"""Answers survive whatever ends the process, and none is counted twice."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
from decimal import Decimal

import pytest

from embexp.errors import BusyError
from embexp.service.journal import Answer, Journal
from tests.command import REPOSITORY

KEY = "ab" * 32
ANSWER = Answer("What?", "stop", None, prompt_tokens=100, completion_tokens=7, cost=0.00032, attempts=2)


def key(number):
    return f"{number:064x}"


def test_an_answer_is_read_back_as_it_was_added(tmp_path):
    odd = Answer('zwei\nZeilen, "Zeichen" \u2028 \ud800 日本', "length", "no", 1, 2, None, 3, True)
    journal = Journal(tmp_path / "answers.jsonl")
    journal.add(KEY, ANSWER, about="p1", model="m")
    journal.add(key(2), odd, about="p2", model="m")
    assert (journal.get(KEY), journal.get(key(2)), journal.get(key(3))) == (ANSWER, odd, None)
    journal.close()
    again = Journal(tmp_path / "answers.jsonl")
    assert (again.get(KEY), again.get(key(2)), len(again)) == (ANSWER, odd, 2)
    again.close()


def test_each_answer_is_one_line_on_disk_before_the_next(tmp_path):
    journal = Journal(tmp_path / "answers.jsonl")
    for number in range(3):
        journal.add(key(number), ANSWER, about=f"p{number}", model="m")
        lines = (tmp_path / "answers.jsonl").read_text().splitlines()
        assert [json.loads(line)["about"] for line in lines] == [f"p{each}" for each in range(number + 1)]
    journal.close()


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path):
    path = tmp_path / "answers.jsonl"
    journal = Journal(path)
    journal.add(key(1), ANSWER, about="p1", model="m")
    whole = path.stat().st_size
    journal.add(key(2), ANSWER, about="p2", model="m")
    journal.close()
    content = path.read_bytes()
    for cut in random.Random(0).sample(range(whole, len(content)), 20):
        path.write_bytes(content[:cut])
        reading = Journal(path, writing=False)
        assert (len(reading), path.stat().st_size) == (1, cut)  # who only reads changes nothing
        reading.close()
        journal = Journal(path)
        assert (len(journal), path.stat().st_size) == (1, whole)
        journal.add(key(2), ANSWER, about="p2", model="m")
        journal.close()
        assert path.read_bytes() == content


def test_lines_that_cannot_be_read_are_passed_over_and_said(tmp_path, caplog):
    path = tmp_path / "answers.jsonl"
    journal = Journal(path)
    journal.add(key(1), ANSWER, about="p1", model="m")
    journal.close()
    path.write_bytes(b'\x00\xff\n[1]\n{"key": 5}\n' + path.read_bytes())
    journal = Journal(path)
    assert (journal.get(key(1)), journal.answered.calls) == (ANSWER, 1)
    assert "3 lines can't be read" in caplog.text
    journal.close()


def test_an_answer_that_stands_twice_in_the_file_is_counted_once(tmp_path):
    path = tmp_path / "answers.jsonl"
    journal = Journal(path)
    journal.add(KEY, ANSWER, about="p1", model="m")
    journal.close()
    path.write_bytes(2 * path.read_bytes())
    journal = Journal(path)
    assert (len(journal), journal.answered.calls, journal.answered.tokens) == (1, 1, 107)
    journal.close()


def test_spending_adds_up_exactly_over_attempts(tmp_path):
    costs = [0.1, 0.2, 0.0000015, 123.456789] * 250  # 0.1 + 0.2 is not 0.3 in floating point
    path = tmp_path / "answers.jsonl"
    for attempt in range(4):
        journal = Journal(path)
        for number in range(250):
            place = attempt * 250 + number
            journal.add(
                key(place), Answer("", prompt_tokens=3, completion_tokens=2, cost=costs[place]), about="", model=""
            )
        journal.close()
    journal = Journal(path)
    assert journal.answered.usd == 250 * Decimal("123.7567905")
    assert (journal.answered.calls, journal.answered.tokens, journal.answered.cost) == (1000, 5000, 30939.197625)
    journal.close()


def test_a_call_without_a_price_leaves_the_cost_unknown_and_its_tokens_counted(tmp_path):
    journal = Journal(tmp_path / "answers.jsonl")
    journal.add(key(1), ANSWER, about="", model="")
    journal.add(key(2), Answer("", prompt_tokens=5, completion_tokens=6), about="", model="")
    assert (journal.answered.cost, journal.answered.usd, journal.answered.tokens) == (None, Decimal("0.00032"), 118)
    assert journal.answered.unpriced is not None
    assert (journal.answered.unpriced.calls, journal.answered.unpriced.tokens) == (1, 11)
    journal.close()


def test_a_lost_call_is_no_answer_and_is_counted_apart(tmp_path):
    path = tmp_path / "answers.jsonl"
    journal = Journal(path)
    journal.lose(KEY, ANSWER, about="p1", model="m")
    journal.close()
    journal = Journal(path)
    assert (KEY in journal, len(journal), journal.answered.calls, journal.lost.tokens) == (False, 0, 0, 107)
    journal.close()


def test_a_second_process_is_refused_and_a_reader_is_not(tmp_path):
    path = tmp_path / "answers.jsonl"
    journal = Journal(path)
    journal.add(KEY, ANSWER, about="p1", model="m")
    script = (
        "import sys; from pathlib import Path; from embexp.service.journal import Journal; Journal(Path(sys.argv[1]))"
    )
    call = [sys.executable, "-c", script, str(path)]
    second = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert "BusyError: another process is at work on" in second.stderr
    with pytest.raises(BusyError, match="another process"):
        Journal(path)
    reading = Journal(path, writing=False)
    assert reading.get(KEY) == ANSWER
    reading.close()
    journal.close()
    assert subprocess.run(call, cwd=REPOSITORY, timeout=60).returncode == 0


def test_to_read_a_journal_that_is_not_there_makes_none(tmp_path):
    reading = Journal(tmp_path / "nowhere" / "answers.jsonl", writing=False)
    assert (len(reading), KEY in reading, list(tmp_path.iterdir())) == (0, False, [])
    reading.close()


def test_on_a_full_disk_nothing_is_added_and_the_file_stays_whole(tmp_path):
    path = tmp_path / "answers.jsonl"
    child = os.fork()
    if child == 0:  # the limit can't be raised again
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            journal = Journal(path)
            for number in range(100):
                journal.add(key(number), ANSWER, about="p", model="m")
        except OSError:
            os._exit(7 if len(journal) == journal.answered.calls == number else 8)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    content = path.read_bytes()
    assert content.endswith(b"}\n")
    journal = Journal(path)
    assert (len(journal), journal.answered.calls) == (content.count(b"\n"), content.count(b"\n"))
    assert len(journal) >= 3
    journal.close()


def test_twenty_thousand_long_answers_take_little_memory(tmp_path):
    script = """
import resource, sys
from pathlib import Path
from embexp.service.journal import Answer, Journal
path = Path(sys.argv[1])
journal = Journal(path)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range(20_000):
    journal.add(f"{number:064x}", Answer("x" * 2000, prompt_tokens=1, completion_tokens=1), about="p", model="m")
journal.close()
again = Journal(path)
assert len(again) == 20_000 and again.get(f"{19_999:064x}").text == "x" * 2000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    call = [sys.executable, "-c", script, str(tmp_path / "answers.jsonl")]
    grown = int(subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert grown < 15_000, f"{grown} KiB for 40 MB of answers"
