"""What a run shows while it goes on: on a terminal, and elsewhere."""

import logging
import os
import re
import subprocess
import sys
import time

import pytest

from embexp import libraries, progress, stages
from embexp.progress import Count, text_of
from embexp.training.callbacks import Track
from tests.command import QUICK, REPOSITORY, separate
from tests.terminal import Seen, on_a_terminal

TRAINED = ["trainer.max_steps=300", "trainer.eval_steps=50", "trainer.logging_steps=10"]


def training(*, done=1_200, total=3_000, seconds=60.0):
    """Some seconds after its start; the loss and dev's metric are known."""
    count = Count("training", total, unit="steps", told=False)
    count.done, count.shown = done, ("loss 0.412", "dev recall@10 0.731")
    return count, count._started + seconds


def shown(*under_way, width, now):
    return text_of(under_way, width=width, now=now).plain.split("\n")


# the line


def test_a_minute_for_1200_of_3000_steps_is_20_a_second_and_leaves_a_minute_and_a_half():
    count, now = training()
    numbers = "1,200/3,000  loss 0.412  dev recall@10 0.731  1:30 left  20.0 steps/s"
    assert shown(Count("training"), count, width=110, now=now) == [f"training  {'━' * 28}  {numbers}"]


def test_a_resumed_training_counts_the_rate_from_where_it_went_on():
    count = Count("training", 1_000, unit="steps", done=900)
    count.add(10)
    assert count.pace(count._started + 5) == ["0:45 left", "2.0 steps/s"]  # 90 are left


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (80, "training  1,200/3,000  loss 0.412  dev recall@10 0.731  1:30 left  20.0 steps/s"),
        (60, "training  1,200/3,000  loss 0.412  1:30 left  20.0 steps/s"),
        (34, "training  1,200/3,000  loss 0.412"),
        (12, "training"),
        (6, "trai…"),
    ],
)
def test_a_narrow_terminal_shows_what_matters_most(width, line):
    count, now = training()
    found = shown(Count("training"), count, width=width, now=now)
    assert [re.sub("━+  ", "", text) for text in found] == [line]
    assert all(len(text) < width for text in found)


def test_a_short_training_is_shown_whole_in_60_columns():
    count, now = training(done=12, total=40, seconds=6)
    assert shown(count, width=60, now=now) == ["training  12/40  loss 0.412  dev recall@10 0.731  0:14 left"]


def test_what_is_counted_in_a_training_has_a_line_beneath_it():
    count, now = training()
    texts = Count("looking at dev", 359, unit="texts")
    first, second = shown(Count("training"), count, texts, width=80, now=now)
    assert first.startswith("training ")
    assert second.startswith("  looking at dev  ━")
    assert "0/359" in second


def test_a_stage_that_counts_nothing_shows_how_long_it_takes():
    stage = Count("reading data")
    assert shown(Count(""), stage, width=60, now=stage._started + 75) == ["reading data  1:15"]
    assert shown(Count(""), width=60, now=0) == [""]


def test_ten_thousand_updates_take_microseconds_each():
    with Count("training", 10_000, unit="steps") as count:
        start = time.perf_counter()
        for _ in range(10_000):
            count.add()
    assert (time.perf_counter() - start) / 10_000 < 20e-6


# on a terminal

SCRIPT = """
import logging, os, sys, time, warnings
from embexp import cli, progress
with cli.ends_with_one():
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    with progress.Count("working", 100, unit="steps") as count:
        count.add(50)
        {act}
print("end")
"""


def script(act, **options):
    return on_a_terminal("-c", SCRIPT.format(act=act), **options)


def test_what_is_printed_meanwhile_is_whole_above_the_line_and_the_line_goes_away():
    long = "x" * 150  # more than a row of the terminal
    act = f"time.sleep(1); logging.warning('a log {long}'); print('prin', end=''); time.sleep(0.5); print('ted'); "
    act += "warnings.warn('beware', stacklevel=1); sys.stderr.write('\\rbar 50%\\rbar 100%\\n'); time.sleep(0.5)"
    seen = script(act)
    assert any(re.match(r"working  ━+  50/100  ", text) for text in seen.drawn)
    assert "".join(seen.screen[:2]) == f"a log {long}"
    assert seen.screen[2] == "printed"
    assert "UserWarning: beware" in seen.screen[3]
    assert seen.screen[-3:] == ["bar 100%", "end", ""]


def test_what_a_forked_process_prints_is_its_own():
    act = "time.sleep(0.5); (os.fork() == 0 and (print('from the child', flush=True), os._exit(0))); os.wait()"
    seen = script(act)
    assert re.search(r"(?<!\x1b\[2K)from the child", seen.written)  # it takes no line away, nor draws one
    assert seen.screen[-2:] == ["end", ""]


def test_ctrl_c_leaves_the_cursor_visible_and_its_message_last():
    seen = script("print('begun'); time.sleep(60)", keys=[("50/100", b"\x03")])
    assert (seen.code, seen.screen[-2:]) == (1, ["embexp: interrupted", ""])
    assert seen.screen[0] == "begun"
    assert "?25l" not in seen.written


def test_an_error_comes_last():
    seen = script("time.sleep(0.5); raise ValueError('no')")
    assert (seen.code, seen.screen) == (1, ["embexp: no", ""])


@pytest.mark.parametrize(("name", "value", "moves"), [("TERM", "dumb", False), ("NO_COLOR", "1", True)])
def test_a_dumb_terminal_gets_no_control_characters_and_no_color_none_of_colours(name, value, moves):
    act = "time.sleep(1); print(progress.moves())"
    coloured, asked = (script(act, environment=given) for given in ({}, {name: value}))
    assert re.search(r"\x1b\[[0-9;]*3[0-7]m", coloured.written)
    assert not re.search(r"\x1b\[[0-9;]*[39][0-7]m", asked.written)
    assert ("\x1b" in asked.written, "working" in asked.written) == (moves, moves)
    assert asked.screen == [str(moves), "end", ""]


def test_rich_is_not_imported_where_there_is_no_terminal():
    act = "print('rich' in {name.partition('.')[0] for name in sys.modules})"
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(act=act)], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert (ended.stdout, ended.stderr) == ("False\nend\n", "")


# a run


@pytest.fixture(scope="module")
def run_on_a_terminal(pairs, tmp_path_factory):
    """How a run looks on a terminal, by the number of its processes."""
    seen = {}

    def ran(processes) -> Seen:
        if processes not in seen:
            folder = tmp_path_factory.mktemp("terminal") / "run"
            data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group"]
            seen[processes] = on_a_terminal(
                "-m", "embexp", *data, *QUICK, *TRAINED, f"trainer.processes={processes}", f"hydra.run.dir={folder}",
                columns=90,
            )  # fmt: skip
            assert seen[processes].code == 0, seen[processes].written
        return seen[processes]

    return ran


def test_a_run_on_a_terminal_shows_stages_loss_dev_and_time_left_and_ends_with_where_to_look(run_on_a_terminal):
    seen = run_on_a_terminal(1)
    assert "loading libraries" in seen.drawn
    line = r"training  .*\d+/300  loss \d\.\d+  dev recall@10 \d\.\d{3}  0:\d\d left"
    assert any(re.match(line, text) for text in seen.drawn), seen.drawn
    screen = [text for text in seen.screen if text]
    assert not [text for text in screen if re.search(r"━|left|/300|^loading libraries", text)]
    for stage in stages.OF_A_TRAINING.values():
        assert len([text for text in screen if re.fullmatch(rf"{stage}: \d+\.\d s", text)]) == 1, stage
    assert "?25l" not in seen.written
    (verdict,) = (place for place, text in enumerate(screen) if text.startswith("Verdict: "))
    assert "| recall@10 " in "".join(screen[:verdict])
    where = [text for text in screen[verdict:] if re.match("report: |model:  |try it: ", text)]
    assert [text.split(":")[0] for text in where] == ["report", "model", "try it"]
    assert "".join(screen).endswith('/run "a question"')


def test_the_followers_of_a_run_show_nothing(run_on_a_terminal):
    def without_numbers(seen):
        return [re.sub(r"[\d.]+", "N", text) for text in seen.screen if re.match("[a-z ]+: |step ", text)]

    alone, together = without_numbers(run_on_a_terminal(1)), without_numbers(run_on_a_terminal(2))
    assert len(alone) > len(stages.OF_A_TRAINING)
    assert [text for text in together if text in alone] == together


def test_piped_a_run_says_a_line_a_stage_and_no_control_characters(pairs, tmp_path):
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group", "logger.mode=offline"]
    words = [*QUICK[:-1], *data, *TRAINED, "hydra.run.dir=run"]
    ended = separate(*words, folder=tmp_path, env={**os.environ, "WANDB_MODE": "offline", "FORCE_COLOR": "1"})
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert not set(ended.stdout) & set("\r\x1b")
    assert len(lines) < 65
    found = [re.sub(r": \d+\.\d s$", "", line) for line in lines]
    assert [line for line in found if line in stages.SHOWN.values()] == [*stages.OF_A_TRAINING.values()]
    assert sum(": loss " in line for line in lines) == 11
    assert sum(": dev recall@10 " in line for line in lines) == 11
    assert not [line for line in lines if "WANDB" in line]
    assert lines[-1].startswith("to upload this run: ")
    assert [line.split(":")[0] for line in lines[-4:-1]] == ["report", "model", "try it"]
    parts = (found[0] for line in lines if (found := re.match(r"\| recall@10 |Verdict|Note|report", line)))
    assert [*dict.fromkeys(parts)] == ["| recall@10 ", "Verdict", "Note", "report"]


def test_a_count_that_takes_minutes_says_so_in_the_log(caplog):
    caplog.set_level(logging.INFO, "embexp")
    with Count("base model", 20_000, unit="texts") as count:
        count.add(500)
        count._last -= 61
        count._started -= 99.99
        count.add(500)
        count.add(500)
    (line,) = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(r"base model: 1,000/20,000 texts, 31:40 left, 10.0 texts/s", line)


def test_a_long_training_says_eleven_losses_and_its_looks(caplog):
    caplog.set_level(logging.INFO, "embexp")

    class Tracker:
        def log(self, values, *, step):
            pass

    class State:
        max_steps = 1_000
        global_step = 0

    track, state = Track(Tracker(), metric="recall@10"), State()
    for state.global_step in range(1, 1_001):
        track.on_log(None, state, None, {"loss": 0.5, "epoch": 1.0})
    track.on_log(None, state, None, {"eval_recall@10": 0.25, "eval_runtime": 1.0, "epoch": 1.0})
    lines = [record.getMessage() for record in caplog.records]
    assert [*lines[:2], lines[-2]] == [f"step {n} of 1000: loss 0.5000" for n in (1, 101, 1000)]
    assert len(lines) == 12  # 1, 101, ... 901, the last, and dev
    assert lines[-1] == "step 1000 of 1000: dev recall@10 0.250"


def test_a_stage_that_fails_says_when(caplog):
    caplog.set_level(logging.INFO, "embexp")
    seconds, before = {}, list(progress._display._under_way)
    with pytest.raises(ValueError, match="no"), stages.timer(seconds)("rows"):
        raise ValueError("no")
    assert caplog.messages == ["making rows to train on: stopped after 0.0 s"]
    assert seconds == {"rows": 0.0}
    assert progress._display._under_way == before


# the libraries


@pytest.mark.parametrize(
    ("library", "hidden", "shown"),
    [
        ("transformers", "WARNING", "ERROR"),
        ("bm25s", "INFO", "WARNING"),
        ("matplotlib", "WARNING", "ERROR"),
        ("sentence_transformers", "INFO", "WARNING"),
        ("datasets", "INFO", "WARNING"),
        ("huggingface_hub", "INFO", "WARNING"),
        ("httpx", "INFO", "WARNING"),
        ("torch", "INFO", "WARNING"),
    ],
)
def test_which_lines_of_a_library_are_shown(library, hidden, shown):
    libraries.loaded()
    if library in ("bm25s", "matplotlib"):  # which are loaded apart
        libraries.quiet(library)
    logger = logging.getLogger(library)
    assert not logger.isEnabledFor(logging.getLevelName(hidden))
    assert logger.isEnabledFor(logging.getLevelName(shown))


def test_no_library_shows_bars_of_its_own():
    from datasets.utils import are_progress_bars_disabled
    from huggingface_hub.utils import are_progress_bars_disabled as no_downloads
    from transformers.utils.logging import is_progress_bar_enabled

    libraries.loaded()
    libraries.hide_downloads()
    assert (are_progress_bars_disabled(), no_downloads(), is_progress_bar_enabled()) == (True, True, False)


def test_the_notice_that_transformers_prints_is_left_out_and_nothing_else(capsys):
    with libraries._unprinted():
        print("before")
        print("[INFO] Running in WANDB offline mode")
        print("after")
    assert capsys.readouterr().out == "before\nafter\n"


def test_the_process_that_others_are_forked_from_prints_nothing():
    code = "import embexp.jobs.preloaded"
    environment = {**os.environ, "WANDB_MODE": "offline"}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment
    )
    assert (ended.stdout, ended.stderr) == ("", "")
