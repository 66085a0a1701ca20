"""Every fault that a server can have ends as it should, nothing is paid for twice, and no cap is exceeded."""

from __future__ import annotations

import dataclasses
import email.utils
import gc
import itertools
import json
import logging
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from embexp.errors import BusyError, UserError
from embexp.mine import call, progress
from embexp.mine.client import Client
from embexp.progress import Count, text_of
from embexp.service.budget import Budget
from embexp.service.journal import Answer, Journal
from embexp.service.request import Request, Schema
from embexp.service.server import Server
from tests.command import REPOSITORY, hear_interrupts
from tests.mine_server import Call, Reply, Stub, error, good

KEY = "sk-canary-0123456789abcdef"
SCHEMA = Schema("test_1", {"type": "object"})
PRICE = {"input": 2.5, "output": 10.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits of milliseconds, where the server does not ask for longer ones, and a key."""
    monkeypatch.setattr(call, "FIRST_WAIT", 0.002)
    monkeypatch.setattr(call, "SPREAD", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def asking(count, *, start=0):
    """Requests on passages of their own: p0, p1, ..."""
    for number in range(start, start + count):
        yield Request(f"id{number}", "Write.", f"<passage>p{number}</passage>", SCHEMA, 50)


def client_of(stub, folder, *, budget=None, **settings):
    server = Server(**{"model": "m", "base_url": stub.base_url, "retries": 2, "price": PRICE, **settings})
    return Client(server, journal=folder / "answers.jsonl", budget=budget)


def asked(stub, folder, count=5, *, budget=None, **settings):
    """(passages answered, the report) of one run that asks `count` requests."""
    with client_of(stub, folder, budget=budget, **settings) as client:
        answered = {request.user[9:-10] for request, _ in client.ask(asking(count))}
        return answered, client.report()


def once_each(reply):
    """The plan in which each passage's first call gets `reply`, the next a good answer."""
    seen = set()

    def plan(request: Call):
        first = request.about not in seen
        seen.add(request.about)
        return reply if first else good(request)

    return plan


def passages(count, *, start=0):
    return {f"p{number}" for number in range(start, start + count)}


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_each_request_is_sent_once_with_its_schema_and_key_and_its_answer_kept(tmp_path):
    with Stub() as stub:
        answered, report = asked(stub, tmp_path, 40)
        assert answered == passages(40)
        assert sorted(stub.abouts) == sorted(passages(40))
        assert (report.sent, report.answered.calls, report.failed, report.kept) == (40, 40, 0, 0)
        first = stub.calls[0]
    assert first.path == "/v1/chat/completions"
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert first.body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Write."},
            {"role": "user", "content": f"<passage>{first.about}</passage>"},
        ],
        "max_tokens": 1000,
        "temperature": 0.7,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "test_1", "schema": {"type": "object"}, "strict": True},
        },
    }


def test_asked_again_nothing_is_sent_and_the_sums_are_those_of_the_first_run(tmp_path):
    with Stub() as stub:
        _, first = asked(stub, tmp_path, 30)
        answered, second = asked(stub, tmp_path, 30)
        assert answered == passages(30)
        assert len(stub.calls) == 30
    assert (second.sent, second.kept, second.answered) == (0, 30, first.answered)
    assert first.answered.tokens == sum(50 + len(p) + 7 + len(p) % 5 for p in passages(30))


def test_ten_more_passages_cost_ten_more_calls(tmp_path):
    with Stub() as stub:
        asked(stub, tmp_path, 30)
        answered, report = asked(stub, tmp_path, 40)
        assert answered == passages(40)
        assert sorted(stub.abouts[30:]) == sorted(passages(10, start=30))
    assert (report.sent, report.kept) == (10, 30)


def test_model_prompt_and_parameters_are_part_of_the_key_and_the_address_is_not(tmp_path):
    request = next(asking(1))

    def key(request=request, **settings):
        return request.key(**{"model": "m", "temperature": 0.7, "max_tokens": 10, **settings})

    others = [
        key(model="n"),
        key(temperature=None),
        key(max_tokens=11),
        key(dataclasses.replace(request, about="other")),
        key(dataclasses.replace(request, system="Other.")),
        key(dataclasses.replace(request, user="Other.")),
        key(dataclasses.replace(request, schema=Schema("test_2", {}))),
    ]
    assert len({key(), *others}) == 8
    assert key() == key(dataclasses.replace(request, expected=7, subject="x"))
    with Stub() as first, Stub() as second:
        asked(first, tmp_path, 3)
        asked(second, tmp_path, 3, concurrency=1, timeout=5, retries=0)
        assert (len(first.calls), len(second.calls)) == (3, 0)


def test_the_same_request_twice_in_a_run_is_sent_once(tmp_path):
    with Stub(lambda request: good(request, latency=0.05)) as stub, client_of(stub, tmp_path) as client:
        twice = [request for request in asking(4) for _ in range(2)]
        assert len(list(client.ask(twice))) == 8
        assert len(stub.calls) == 4


def test_as_many_calls_are_in_flight_as_allowed_and_no_more(tmp_path):
    with Stub(lambda request: good(request, latency=0.4)) as stub:
        asked(stub, tmp_path, 17, concurrency=8)
        assert stub.most == 8


def test_requests_are_taken_as_they_are_needed(tmp_path):
    taken = []

    def endless():
        for request in asking(10**9):
            taken.append(request.about)
            yield request

    with Stub() as stub, client_of(stub, tmp_path, concurrency=4) as client:
        answers = client.ask(endless())
        for number in range(50):
            next(answers)
            assert len(taken) <= number + 1 + 4 * 4 + 4
        answers.close()


def test_two_askings_at_a_time_share_the_client(tmp_path):
    with Stub() as stub, client_of(stub, tmp_path) as client:
        found = []
        for request, _ in client.ask(asking(5)):
            number = int(request.about[2:])
            found += [other.about for other, _ in client.ask(asking(1, start=100 + number))]
        assert sorted(found) == [f"id10{number}" for number in range(5)]


def test_a_request_may_have_a_temperature_of_its_own(tmp_path):
    request = dataclasses.replace(next(asking(1)), temperature=0.0)
    with Stub() as stub, client_of(stub, tmp_path) as client:
        list(client.ask([request]))
        list(client.ask(asking(1)))
        assert [each.body["temperature"] for each in stub.calls] == [0.0, 0.7]
    with Stub() as stub:
        asked(stub, tmp_path, 1, temperature=None)
        assert "temperature" not in stub.calls[0].body


# --- what a server gets wrong in passing ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_an_error_that_passes_is_asked_again(tmp_path, status):
    with Stub(once_each(error(status, "busy"))) as stub:
        answered, report = asked(stub, tmp_path, 5)
        assert answered == passages(5)
        assert sorted(stub.abouts) == sorted(2 * [*passages(5)])
    assert (report.sent, report.retried, report.failed, report.answered.calls) == (10, 5, 0, 5)
    journal = Journal(tmp_path / "answers.jsonl", writing=False)
    keys = [request.key(model="m", temperature=0.7, max_tokens=1000) for request in asking(5)]
    assert [journal.get(key).attempts for key in keys] == [2] * 5
    journal.close()
    assert report.lost.calls == 0  # an error is not billed


@pytest.mark.parametrize(
    "header",
    [
        lambda: {"Retry_After": "1"},
        lambda: {"retry_after_ms": "1000", "Retry_After": "30"},
        lambda: {"Retry_After": email.utils.formatdate(time.time() + 2, usegmt=True)},  # of whole seconds
    ],
    ids=["seconds", "milliseconds", "date"],
)
def test_retry_after_is_obeyed_by_all_calls(tmp_path, header):
    times = []

    def plan(request):
        times.append(time.monotonic())
        return good(request) if len(times) > 1 else error(429, "slow down", **header())

    with Stub(plan) as stub:
        answered, report = asked(stub, tmp_path, 20)
        assert answered == passages(20)
    assert (report.sent, report.retried) == (21, 1)
    assert 0.95 < times[1] - times[0] < 10


def test_a_server_that_asks_to_wait_for_an_hour_ends_the_run_with_the_reason(tmp_path):
    with Stub(lambda _: error(429, "come back", Retry_After="3600")) as stub:
        answered, report = asked(stub, tmp_path, 5)
        assert answered == set()
        assert len(stub.calls) == 1
    assert "asks to wait 3,600 seconds (429: come back)" in report.stopped
    assert "run the same command again to go on" in report.stopped


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "inf", "", "0", "Mon, 01 Jan 2001 00:00:00 GMT"])
def test_a_retry_after_without_sense_is_passed_over(tmp_path, value):
    with Stub(once_each(error(429, "busy", Retry_After=value))) as stub:
        assert asked(stub, tmp_path, 3)[0] == passages(3)


def test_a_low_limit_on_the_rate_slows_the_run_and_fails_nothing(tmp_path):
    windows: Counter[int] = Counter()

    def plan(request):  # two calls in each fifth of a second
        window = int(time.monotonic() * 5)
        windows[window] += 1
        return good(request) if windows[window] <= 2 else error(429, "slow down", retry_after_ms="150")

    with Stub(plan) as stub:
        answered, report = asked(stub, tmp_path, 24, concurrency=12, retries=3)
        assert answered == passages(24)
    assert (report.failed, report.stopped) == (0, None)
    assert report.retried > 24  # more than the retries of a request that fails


@pytest.mark.parametrize("header", [{}, {"Retry_After": "0"}], ids=["none", "nought"])
def test_waits_grow_where_the_server_asks_for_none(tmp_path, monkeypatch, header):
    monkeypatch.setattr(call, "FIRST_WAIT", 0.1)
    times = []

    def plan(request):
        times.append(time.monotonic())
        return good(request) if len(times) == 4 else error(500, "busy", **header)

    with Stub(plan) as stub:
        asked(stub, tmp_path, 1, retries=3)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    for wait, most in zip(waits, [0.1, 0.2, 0.4], strict=True):
        assert most / 2 <= wait < most + 1


def test_a_dropped_connection_is_asked_again_and_may_have_been_billed(tmp_path):
    with Stub(once_each(Reply(drop=True))) as stub:
        answered, report = asked(stub, tmp_path, 5)
        assert answered == passages(5)
    assert (report.sent, report.answered.calls, report.lost.calls) == (10, 5, 5)
    assert report.lost.completion_tokens == 5 * 1000  # at its most


@pytest.mark.parametrize("reply", [Reply(hang=True), Reply(trickle=True)], ids=["hang", "trickle"])
def test_a_hang_is_given_up_after_the_timeout_and_asked_again(tmp_path, reply):
    with Stub(once_each(reply)) as stub:
        start = time.monotonic()
        answered, report = asked(stub, tmp_path, 5, timeout=0.4)
        assert answered == passages(5)
        assert 0.4 < time.monotonic() - start < 10
    assert (report.sent, report.lost.calls, report.retried) == (10, 5, 5)


def test_a_request_that_keeps_failing_is_left_for_the_next_run(tmp_path):
    broken = True

    def plan(request):
        return error(500, "poison") if broken and request.about == "p0" else good(request)

    with Stub(plan) as stub:
        answered, report = asked(stub, tmp_path, 5)
        assert answered == passages(4, start=1)  # the first of all, too
        assert stub.abouts.count("p0") == 3
        assert (report.failed, report.stopped, report.last_fault) == (1, None, "500: poison")
        broken = False
        answered, report = asked(stub, tmp_path, 5)
        assert (answered, report.sent, report.kept) == (passages(5), 1, 4)


def test_twenty_failures_in_a_row_end_the_run(tmp_path):
    with Stub(lambda request: good(request) if int(request.about[1:]) < 10 else error(500, "out of order")) as stub:
        answered, report = asked(stub, tmp_path, 500, concurrency=2, retries=1)
        assert answered == passages(10)
        assert len(stub.calls) <= 10 + 2 * 22
    assert report.stopped.startswith("20 requests failed one after another, the last with: 500: out of order.")
    assert 20 <= report.failed <= 22


def test_failures_that_are_not_in_a_row_do_not_end_the_run(tmp_path):
    with Stub(lambda request: good(request) if int(request.about[1:]) % 2 else error(500, "odd")) as stub:
        answered, report = asked(stub, tmp_path, 100, concurrency=1, retries=0)
        assert (len(answered), report.failed, report.stopped) == (50, 50, None)


def test_a_server_that_is_not_there_ends_the_run_after_the_retries(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(model="m", base_url=f"http://127.0.0.1:{port}/v1", api_key_env=None, retries=2)
    with Client(server, journal=tmp_path / "answers.jsonl") as client:
        assert list(client.ask(asking(100))) == []
        report = client.report()
    assert f"no connection to http://127.0.0.1:{port}/v1" in report.stopped
    assert "Is the server running, and llm.base_url right?" in report.stopped
    assert report.lost.calls == 0  # nothing was ever sent


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(body="<html>Welcome</html>"), "answered with no completion: <html>Welcome</html>"),
        (Reply(body={"error": {"message": "upstream is busy", "code": 502}}), "upstream is busy"),
        (Reply(body={"choices": []}), "answered with no completion: nothing"),
        (Reply(body={"choices": [{"message": "text"}]}), "its answer was none"),
        (Reply(body={"id": "x"}), "answered with no completion"),
    ],
)
def test_two_hundred_without_a_completion_is_a_failure_that_may_pass(tmp_path, reply, words):
    with Stub(lambda request: reply if request.about == "p1" else good(request)) as stub:
        answered, report = asked(stub, tmp_path, 3)
        assert answered == {"p0", "p2"}
    assert (report.failed, report.retried) == (1, 2)
    assert words in report.last_fault


# --- what no other request would do better ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (error(429, "You exceeded your quota", code="insufficient_quota"), "no money left (429: You exceeded"),
        (error(402, "Insufficient Balance"), "no money left (402: Insufficient Balance"),
        (error(401, "Incorrect API key"), "does not take the key in OPENAI_API_KEY (401: Incorrect API key)"),
        (error(403, "Not for you"), "does not permit this (403: Not for you)"),
        (error(404, "no such model", code="model_not_found"), "has no model m, or is no such server (404: no such"),
    ],
    ids=["quota", "balance", "key", "permission", "model"],
)
def test_quota_key_permission_and_model_end_the_run_at_once_and_keep_what_was_answered(tmp_path, reply, words):
    with Stub(lambda request: good(request) if request.number < 6 else reply) as stub:
        answered, report = asked(stub, tmp_path, 50, concurrency=2)
        assert len(answered) == 6
        assert len(stub.calls) <= 8  # those in flight
    assert words in report.stopped
    assert report.stopped.endswith("What was answered is kept: run the same command again to go on")
    assert report.retried == 0
    with Stub() as mended:
        answered, report = asked(mended, tmp_path, 50)
        assert (len(answered), report.kept, len(mended.calls)) == (50, 6, 44)


def test_a_stop_does_not_wait_for_those_that_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(call, "FIRST_WAIT", 60)

    def plan(request):
        return good(request) if request.number == 0 else error(*((500, "busy") if request.number < 5 else (401, "key")))

    with Stub(plan) as stub:
        start = time.monotonic()
        assert "does not take the key" in asked(stub, tmp_path, 50, concurrency=8)[1].stopped
        assert time.monotonic() - start < 20


def test_after_a_stop_what_was_answered_in_earlier_runs_still_comes(tmp_path):
    with Stub() as stub:
        asked(stub, tmp_path, 50)
    with Stub(lambda _: error(401, "no")) as stub, client_of(stub, tmp_path, concurrency=1) as client:
        first = list(client.ask(asking(3, start=100)))
        answered = [request.about for request, _ in client.ask([*asking(2, start=200), *asking(50)])]
        assert (first, len(answered), len(stub.calls)) == ([], 50, 1)


# --- what servers differ in -------------------------------------------------------------------------------------------


def refusing(parameter, *, status=400, said="{} is not supported by this server", param=None):
    def plan(request):
        if parameter in request.body:
            return error(status, said.format(parameter), param=param)
        return good(request, latency=0.01)

    return plan


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("said", ["{} is not supported by this server", "Bad Request"])
def test_a_server_that_refuses_the_schema_is_asked_once_and_then_without(tmp_path, status, said):
    with Stub(refusing("response_format", status=status, said=said)) as stub:
        answered, report = asked(stub, tmp_path, 40)
        assert answered == passages(40)
        assert ["response_format" in each.body for each in stub.calls] == [True] + [False] * 40
    assert (report.retried, report.failed, report.lost.calls) == (0, 0, 0)


def test_a_server_that_ignores_the_schema_just_works(tmp_path):
    with Stub(lambda _: Reply("question|What?|That")) as stub:
        assert asked(stub, tmp_path, 10)[0] == passages(10)
        assert all("response_format" in each.body for each in stub.calls)


def test_a_model_that_refuses_max_tokens_is_told_max_completion_tokens_from_then_on(tmp_path):
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    with Stub(refusing("max_tokens", said=said, param="max_tokens")) as stub:
        assert asked(stub, tmp_path, 20)[0] == passages(20)
        assert [each.body.get("max_completion_tokens") for each in stub.calls] == [None] + [1000] * 20


def test_a_model_that_refuses_a_temperature_is_asked_without(tmp_path):
    said = "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) is supported."
    with Stub(refusing("temperature", said=said)) as stub:
        assert asked(stub, tmp_path, 20)[0] == passages(20)
        assert len(stub.calls) == 21
    with Stub() as stub:  # and the answers are kept under the temperature that was asked for
        assert asked(stub, tmp_path, 20)[1].kept == 20


def test_a_server_that_refuses_all_three_is_found_out_by_the_first_request_alone(tmp_path):
    def plan(request):
        for name in ("temperature", "max_tokens", "response_format"):
            if name in request.body:
                return error(422, f"Unexpected fields in the request: {{'{name}'}}")
        return good(request, latency=0.02)

    with Stub(plan) as stub:
        assert asked(stub, tmp_path, 30)[0] == passages(30)
        assert len(stub.calls) == 33


def test_a_prompt_that_is_too_long_is_one_failure_and_changes_nothing_for_the_others(tmp_path):
    said = "This model's maximum context length is 4096 tokens, however max_tokens and temperature take 5000"

    def plan(request):
        return error(400, said) if request.about in ("p0", "p7") else good(request, latency=0.005)

    with Stub(plan) as stub:
        answered, report = asked(stub, tmp_path, 20)
        assert answered == passages(20) - {"p0", "p7"}
        others = [each.body for each in stub.calls if each.about not in ("p0", "p7")]
        assert all({"response_format", "temperature", "max_tokens"} <= set(body) for body in others)
        assert stub.abouts.count("p7") == 1
    assert (report.failed, report.retried, report.stopped) == (2, 0, None)


def test_openai_itself_is_told_max_completion_tokens():
    from embexp.mine.protocol import Takes, body_of

    body = body_of(next(asking(1)), Server(model="m"), Takes(limit="max_completion_tokens"))
    assert (body["max_completion_tokens"], "max_tokens" in body) == (1000, False)


# --- what answers are like --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply("half an ans", finish="length"), ("half an ans", "length", None)),
        (Reply("", finish="stop"), ("", "stop", None)),
        (Reply(None), ("", "stop", None)),
        (Reply(None, refusal="I can't"), ("", "stop", "I can't")),
        (Reply("", finish="content_filter"), ("", "content_filter", None)),
        (Reply([{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]), ("in parts", "stop", None)),
    ],
    ids=["truncated", "empty", "no content", "refusal", "filtered", "parts"],
)
def test_answers_of_no_use_are_answers_too_and_are_not_paid_for_again(tmp_path, reply, expected):
    with Stub(lambda _: reply) as stub:
        with client_of(stub, tmp_path) as client:
            ((_, answer),) = client.ask(asking(1))
        assert (answer.text, answer.finish, answer.refusal) == expected
        assert (answer.prompt_tokens, answer.completion_tokens, answer.cost) == (100, 10, 0.00035)
        assert asked(stub, tmp_path, 1)[1].kept == 1
        assert len(stub.calls) == 1


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 0, "completion_tokens": 5}, {"prompt_tokens": 9}])
def test_without_usage_tokens_are_estimated_from_the_text_and_that_is_said_once(tmp_path, caplog, usage):
    with Stub(lambda _: Reply("nine char", usage=usage)) as stub:
        _, report = asked(stub, tmp_path, 3)
    assert report.answered.estimated == 3
    assert report.answered.completion_tokens == 3 * 3
    assert report.answered.prompt_tokens == 3 * (2 + 7)  # of "Write." 6 bytes, of the passage in its tags 21
    assert [r.getMessage().count("they are estimated: one for three bytes") for r in caplog.records] == [1]


# --- progress --------------------------------------------------------------------------------------------------------


def test_on_a_terminal_a_line_shows_done_rate_tokens_cost_and_time_left(tmp_path, monkeypatch):
    lines = []

    def ended(count, end=Count.end):
        lines.append(text_of([count], width=120, now=count._started + 8).plain)
        end(count)

    with Stub(lambda request: good(request, latency=0.02)) as stub:
        asked(stub, tmp_path, 4)
        monkeypatch.setattr(Count, "end", ended)
        with client_of(stub, tmp_path, concurrency=2) as client:
            for _ in client.ask(asking(20), what="questions", total=20):
                pass
    tokens = sum(50 + len(f"p{n}") + 7 + len(f"p{n}") % 5 for n in range(4, 20))
    (line,) = lines  # four were answered before, and say nothing of the rate: 16 in 8 seconds
    assert re.fullmatch(rf"questions  ━+  20/20  {tokens:,} tokens, 0.00 USD  0:00 left  2.0 calls/s", line)


def test_elsewhere_nothing_is_shown_but_a_line_now_and_then(tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level(logging.INFO, "embexp")
    with Stub() as stub:
        asked(stub, tmp_path, 4)
        assert [record.name for record in caplog.records] == []
        monkeypatch.setattr(progress, "FIRST", 0)
        monkeypatch.setattr(progress, "EVERY", 0)
        asked(stub, tmp_path, 10)
    assert capsys.readouterr().err == ""
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 6
    assert lines[-1].startswith("asking: 10, ")
    assert " a second, 3" in lines[-1]


def test_elsewhere_what_is_asked_for_is_said_at_once_and_how_it_goes_soon(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "embexp")
    monkeypatch.setattr(progress, "FIRST", 0)  # seconds; the next line comes after a minute
    with Stub() as stub, client_of(stub, tmp_path) as client:
        assert len(list(client.ask(asking(20), what="questions", total=20))) == 20
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "asking for questions: 20 ..."
    assert second.startswith("questions: 1 of 20, ")


# --- the budget -------------------------------------------------------------------------------------------------------


def most_of(number=0):
    return next(asking(1, start=number)).most_prompt_tokens + 1000


def test_no_call_is_made_that_could_exceed_the_cap_on_tokens(tmp_path):
    taken = 50 + 2 + 7 + 2  # of a passage with a name of two letters
    cap = 3 * taken + most_of() + 5  # after three there is room for a fourth at its most, not for a fifth
    with Stub(lambda request: good(request, latency=0.01)) as stub:
        answered, report = asked(stub, tmp_path, 10, budget=Budget(tokens=cap))
        assert len(answered) == len(stub.calls) == 4
    assert report.answered.tokens == 4 * taken <= cap
    assert report.stopped.startswith(f"budget.tokens={cap:,} would be exceeded: {4 * taken} spent on this data set")
    assert "raise the cap and run the same command to go on" in report.stopped


@pytest.mark.parametrize("cap", [{"calls": 40}, {"usd": 0.5}, {"tokens": 45_000}], ids=["calls", "usd", "tokens"])
def test_caps_hold_with_thirty_two_calls_in_flight_over_several_runs(tmp_path, cap):
    def plan(request):  # answers that take all that they may, and cheap ones
        rng = random.Random(request.about)
        usage = {"prompt_tokens": rng.randint(1, 100), "completion_tokens": rng.choice([1, 1000])}
        return Reply("x", usage=usage, latency=rng.uniform(0, 0.02))

    with Stub(plan) as stub:
        whole = Budget(**cap)
        answered, report = asked(stub, tmp_path, 200, budget=whole)
        assert 0 < len(answered) == len(stub.calls) < 200
        assert "would be exceeded" in report.stopped
        sent = len(stub.calls)
        _, again = asked(stub, tmp_path, 200, budget=Budget(**cap))
        assert len(stub.calls) - sent <= 1  # a smaller prompt may just fit
        assert again.stopped is not None
    spent = again.answered
    assert {"calls": spent.calls, "usd": spent.usd, "tokens": spent.tokens}[next(iter(cap))] <= next(iter(cap.values()))
    if "calls" in cap:
        assert spent.calls == 40


def test_near_the_cap_it_waits_for_calls_in_flight_instead_of_giving_up(tmp_path):
    cap = 30 * 61 + most_of(10)  # each takes 61 of the thousand and more that it may take
    with Stub(lambda request: good(request, latency=0.02)) as stub:
        answered, report = asked(stub, tmp_path, 30, budget=Budget(tokens=cap))
        assert (len(answered), report.stopped) == (30, None)
        assert stub.most <= 2


def test_calls_that_were_cut_off_count_against_the_cap_in_later_runs_too(tmp_path):
    with Stub(lambda _: Reply(drop=True)) as stub:
        _, report = asked(stub, tmp_path, 3, budget=Budget(calls=5), retries=1, concurrency=1)
        assert len(stub.calls) == 5
        assert report.stopped.startswith("budget.calls=5 would be exceeded: 5 spent")
        _, report = asked(stub, tmp_path, 3, budget=Budget(calls=5))
        assert len(stub.calls) == 5
    assert (report.answered.calls, report.lost.calls) == (0, 5)


def test_a_cap_on_dollars_needs_a_price(tmp_path):
    server = Server(model="unheard-of", api_key_env=None, base_url="http://localhost:1/v1")
    with pytest.raises(UserError, match=r"price of unheard-of is not in the price table. Set llm.price"):
        Client(server, journal=tmp_path / "a", budget=Budget(usd=1))
    Client(server, journal=tmp_path / "a", budget=Budget(tokens=1))
    Client(server, journal=tmp_path / "a", budget=Budget(usd=1), prices={"unheard-of": PRICE})


def test_without_a_price_the_cost_is_unknown_and_a_local_servers_is_nothing(tmp_path):
    with Stub() as stub:
        assert asked(stub, tmp_path / "a", 2, price=None)[1].answered.cost is None
        assert asked(stub, tmp_path / "b", 2, price={"input": 0, "output": 0})[1].answered.cost == 0


# --- the dry run ------------------------------------------------------------------------------------------------------


def test_an_estimate_makes_no_call_needs_no_key_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with Stub() as stub:
        found = client_of(stub, tmp_path / "new").estimate(asking(10), lambda text: len(text.split()))
        assert stub.calls == []
    assert (found.calls, found.answered, found.prompt_tokens) == (10, 0, 10 * (1 + 4 + 1 + 4 + 3))
    assert (found.completion_tokens, found.most_completion_tokens) == (500, 10_000)
    assert found.usd == pytest.approx((130 * 2.5 + 500 * 10) / 1e6)
    assert found.most_usd == pytest.approx((130 * 2.5 + 10_000 * 10) / 1e6)
    assert not (tmp_path / "new").exists()


def test_an_estimate_leaves_out_what_has_been_answered(tmp_path):
    with Stub() as stub:
        asked(stub, tmp_path, 6)
        with client_of(stub, tmp_path) as busy:
            list(busy.ask(asking(6)))
            beside = client_of(stub, tmp_path).estimate(asking(10), len)  # while another is at work
            assert beside == busy.estimate(asking(10), len)
    assert (beside.calls, beside.answered, beside.completion_tokens) == (10, 6, 200)
    assert client_of(stub, tmp_path, price=None).estimate(asking(10), len).usd is None


# --- the key ----------------------------------------------------------------------------------------------------------


def test_a_key_that_servers_repeat_is_in_no_message_log_or_file(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    echoes = [
        error(500, f"boom with Bearer {KEY}"),
        error(400, f"bad {KEY}"),
        Reply(body={"error": f"no {KEY}"}),
        Reply(f"answer with {KEY}", refusal=f"no, {KEY}"),
        error(401, f"Incorrect API key provided: {KEY[:12]}****"),
        error(401, f"key {KEY} is wrong"),
    ]
    seen = []
    for place, reply in enumerate(echoes):
        with Stub(lambda _, reply=reply: reply) as stub, client_of(stub, tmp_path / str(place)) as client:
            seen += [repr(each) for each in client.ask(asking(2))]
            seen += [repr(client), repr(client.report()), repr(client.server), repr(vars(client))]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    output = "".join(capfd.readouterr())
    everything = "\n".join([*seen, caplog.text, output]).encode() + b"".join(written)
    assert b"answer with [key]" in everything
    assert b"boom with [key]" in everything
    for part in (KEY, KEY[:12]):
        assert part.encode() not in everything


def test_a_word_that_stands_in_for_a_key_is_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    with Stub(lambda _: Reply("an EMPTY list")) as stub, client_of(stub, tmp_path) as client:
        ((_, answer),) = client.ask(asking(1))
    assert answer.text == "an EMPTY list"


def test_a_server_without_a_key_is_never_sent_openais(tmp_path):
    with Stub() as stub:
        asked(stub, tmp_path, 1, api_key_env=None)
        assert KEY not in str(stub.calls[0].headers)


def test_a_key_with_a_line_end_is_sent_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\r\n")
    with Stub() as stub:
        assert asked(stub, tmp_path, 1)[0] == {"p0"}
        assert stub.calls[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("value", ["", " ", "two words-of-a-key", "schlüssel-1234567"])
def test_a_key_that_is_missing_or_cannot_be_one_is_said_without_it(tmp_path, monkeypatch, value):
    monkeypatch.setenv("OTHER_KEY", value)
    with Stub() as stub, pytest.raises(UserError, match="OTHER_KEY") as raised:
        asked(stub, tmp_path, 1, api_key_env="OTHER_KEY")
    assert not value.strip() or value not in str(raised.value)
    assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": " "}, "llm.model must be"),
        ({"base_url": "localhost:11434"}, "llm.base_url must be an address"),
        ({"base_url": "http://me:sk-secret@host/v1"}, "llm.base_url must be an address"),
        ({"base_url": "http://host/v1?key=sk-secret"}, "llm.base_url must be an address"),
        ({"api_key_env": "sk-secret-0123"}, "must be the name of an environment variable"),
        ({"temperature": 3}, "llm.temperature=3 must be from 0 to 2"),
        ({"max_tokens": 0}, "llm.max_tokens=0 must be at least 1"),
        ({"concurrency": 0}, "llm.concurrency=0 must be at least 1"),
        ({"retries": -1}, "llm.retries=-1 must be at least 0"),
        ({"timeout": 0}, "llm.timeout=0 must be seconds above 0"),
        ({"price": {"input": 1}}, "llm.price={'input': 1} must be"),
        ({"price": {"input": 1, "output": -1}}, "must be {input: ..., output: ...}"),
    ],
)
def test_settings_out_of_range_are_refused_and_no_secret_repeated(settings, words):
    with pytest.raises(UserError) as raised:
        Server(**{"model": "m", **settings})
    assert words in str(raised.value)
    assert "secret" not in str(raised.value)


# --- how a run may end ------------------------------------------------------------------------------------------------


def test_closing_the_iterator_gives_up_what_is_in_flight_and_says_that_it_may_be_billed(tmp_path):
    with Stub(lambda request: Reply(hang=True) if request.number > 3 else good(request)) as stub:
        with client_of(stub, tmp_path, concurrency=4) as client:
            answers = client.ask(asking(100))
            first = [next(answers) for _ in range(4)]
            while len(stub.calls) < 8:
                time.sleep(0.01)
            start = time.monotonic()
            answers.close()
            assert time.monotonic() - start < 5
            report = client.report()
        assert (len(first), report.answered.calls, len(stub.calls) - report.lost.calls) == (4, 4, 4)
    assert threading.active_count() < 20


def test_closing_the_client_ends_its_thread_and_lets_another_in(tmp_path):
    with Stub(lambda request: Reply(hang=True)) as stub:
        client = client_of(stub, tmp_path)
        answers = client.ask(asking(3))
        waiting = threading.Thread(target=lambda: list(answers), daemon=True)
        waiting.start()
        while not stub.calls:
            time.sleep(0.01)
        with pytest.raises(BusyError):
            asked(stub, tmp_path, 1)
        client.close()
        waiting.join(5)
        assert not [thread for thread in threading.enumerate() if thread.name == "asking"]
        Journal(tmp_path / "answers.jsonl").close()


SCRIPT = """
import json, sys
from pathlib import Path
from embexp.mine.client import Client
from embexp.service.server import Server
from embexp.service.request import Request, Schema
server = Server(model="m", base_url=sys.argv[1], concurrency=8, price={"input": 2.5, "output": 10.0}, retries=1)
with Client(server, journal=Path(sys.argv[2])) as client:
    schema = Schema("test_1", {"type": "object"})
    names = range(int(sys.argv[3]))
    asked = (Request(f"id{n}", "Write.", f"<passage>p{n}</passage>", schema, 50) for n in names)
    found = sum(1 for _ in client.ask(asked))
    report = client.report()
    print(json.dumps([found, report.sent, report.kept, report.answered.tokens, report.answered.cost]))
"""


def start(stub, path, count=60):
    call = [sys.executable, "-c", SCRIPT, stub.base_url, str(path), str(count)]
    return subprocess.Popen(
        call, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    )


def kept_in(path):
    if not path.exists():
        return []
    lines = [line for line in path.read_bytes().split(b"\n")[:-1] if line]  # the last may be torn
    return [line for line in map(json.loads, lines) if "lost" not in line]


def expected(count):
    """(tokens, USD) of all answers, by what the stub says of each."""
    prompts = sum(50 + len(f"p{n}") for n in range(count))
    completions = sum(7 + len(f"p{n}") % 5 for n in range(count))
    return prompts + completions, (prompts * 2.5 + completions * 10) / 1e6


def test_killed_at_random_moments_no_finished_call_is_repeated_none_lost_and_the_sums_are_exact(tmp_path):
    rng = random.Random(4)
    path = tmp_path / "answers.jsonl"
    with Stub(lambda request: good(request, latency=0.03)) as stub:
        for _ in range(3):
            before, sent = kept_in(path), len(stub.calls)
            process = start(stub, path)
            goal = rng.randint(1, 18)
            while process.poll() is None and len(stub.calls) - sent < goal:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.04))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            after = kept_in(path)
            assert after[: len(before)] == before
            finished = {line["about"].replace("id", "p") for line in before}
            assert not finished & set(stub.abouts[sent:])  # none repeated
        assert 0 < len(after) < 60
        sent = len(stub.calls)
        output, errors = start(stub, path).communicate(timeout=60)
        found, made, kept, tokens, cost = json.loads(output)
        assert (found, kept, made) == (60, len(after), 60 - len(after)), errors
        assert len(stub.calls) - sent == made
    lines = kept_in(path)
    assert len(lines) == len({line["key"] for line in lines}) == 60
    whole, usd = expected(60)
    assert (tokens, cost) == (whole, round(usd, 12))
    assert sum(line["prompt_tokens"] + line["completion_tokens"] for line in lines) == whole


def test_ctrl_c_keeps_what_was_answered_and_the_next_run_goes_on(tmp_path):
    path = tmp_path / "answers.jsonl"
    with Stub(lambda request: good(request, latency=0.05)) as stub:
        process = start(stub, path, count=100)
        while len(stub.calls) < 30 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode != 0
        assert "KeyboardInterrupt" in errors
        kept = kept_in(path)
        lost = [line for line in map(json.loads, path.read_text().splitlines()) if line.get("lost")]
        assert len(kept) >= 30 - 8
        assert 0 <= len(kept) + len(lost) - len(stub.calls) <= 8  # all are accounted for, with those just leaving
        sent = len(stub.calls)
        output, _ = start(stub, path, count=100).communicate(timeout=60)
        assert json.loads(output)[:3] == [100, 100 - len(kept), len(kept)]
        assert len(stub.calls) - sent == 100 - len(kept)


def test_a_journal_on_a_full_disk_ends_the_run_with_the_reason(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "add", full)
    with Stub() as stub:
        answered, report = asked(stub, tmp_path, 100, concurrency=2)
        assert answered == set()
        assert len(stub.calls) <= 3
    assert "an answer can't be written ([Errno 28] No space left on device). Free some space" in report.stopped


# --- how fast, in how much memory -------------------------------------------------------------------------------------


def test_thousands_of_passages_are_asked_in_bounded_memory(tmp_path):
    server = subprocess.Popen(
        [sys.executable, "tests/mine_server.py"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    script = """
import sys
from pathlib import Path
from embexp.mine.client import Client
from embexp.service.request import Request, Schema
from embexp.service.server import Server

def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4  # KiB, resident now

def requests():
    for number in range(700):
        yield Request(str(number), "", f"<passage>{number}</passage>" + 20_000 * "x", Schema("s", {}), 1)

server = Server(model="m", base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key_env=None)
seen = []
with Client(server, journal=Path(sys.argv[2])) as client:
    for number, _ in enumerate(client.ask(requests())):
        if number in (300, 699):
            seen.append(memory())
print(seen[1] - seen[0])
"""
    try:
        port = server.stdout.readline().strip()
        call = [sys.executable, "-c", script, port, str(tmp_path / "answers.jsonl")]
        ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        assert int(ended.stdout) < 4_000, "KiB more after 400 requests of 20 kB, 8 MB together"
    finally:
        server.kill()
        server.wait()


def test_a_client_that_was_never_asked_leaves_nothing_behind(tmp_path):
    Client(Server(model="m"), journal=tmp_path / "answers.jsonl").close()
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert isinstance(Answer("x"), Answer)
