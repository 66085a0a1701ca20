import logging

from embexp.mine import pace
from embexp.mine.pace import told


def test_a_step_that_takes_a_while_says_how_far_it_is(monkeypatch, caplog):
    clock = iter(range(0, 100, 2))  # two seconds an item, and a line every five
    monkeypatch.setattr(pace.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="embexp"):
        assert list(told("reading files", ["a", "b", "c", "d", "e", "f"])) == ["a", "b", "c", "d", "e", "f"]
    assert [record.getMessage() for record in caplog.records] == [
        "reading files: 6 ...", "reading files: 2 of 6", "reading files: 5 of 6"]  # fmt: skip


def test_mining_says_each_thing_that_it_does_before_it_asks(embexp, handbook):
    output = embexp.mine("documents=handbook", "miner=sentences").output
    said = [
        "loading libraries ...", "reading files: 12 ...", "loading the model", "taking documents apart: 12 ...",
        "cutting documents: 12 ...", "making questions of passages: 24 ...", "searching for the passages of",
    ]  # fmt: skip
    places = [output.find(words) for words in said]
    assert -1 not in places
    assert places == sorted(places)


def test_a_model_that_is_not_there_is_named_before_a_file_is_read(embexp, handbook):
    mined = embexp.mine("documents=handbook", "miner=sentences", "model=local", "model.path=/nowhere")
    assert (mined.code, "model.path=/nowhere is not a folder" in mined.output) == (1, True)
    assert "reading files" not in mined.output
