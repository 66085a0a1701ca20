"""The benchmarks run end to end on tiny data."""

import argparse
import ast
import importlib.util
import json
import logging
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import looks, pairs
from benchmarks.measuring import Clock
from benchmarks.tables import BLOCK, PAGE
from tests.tiny import tiny_transformer

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = sorted((REPOSITORY / "benchmarks").glob("*.py"))
COMMANDS = [block["command"] for block in BLOCK.finditer(PAGE.read_text())]


def bench(*arguments):
    call = [sys.executable, "benchmarks/training.py", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture
def printed(monkeypatch, capfd):
    """Runs a benchmark in this process and returns what it prints; the libraries are loaded once for all of them."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capfd.readouterr()
        runpy.run_path(str(REPOSITORY / "benchmarks" / script), run_name="__main__")
        return capfd.readouterr().out

    yield run
    logging.disable(logging.NOTSET)


def lines_of(output):
    """The cells of each line of the tables, without their heads."""
    lines = [line.split("|")[1:-1] for line in output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines][2:]


def test_the_training_benchmark_prints_a_line_for_each_arm(tmp_path):
    model = tiny_transformer(tmp_path / "tiny")
    ended = bench("--data", "docstrings:json", "--model", model, "--arms", "plain", "embexp")
    assert ended.returncode == 0, ended.stderr
    lines = [line.split("|")[1:-1] for line in ended.stdout.splitlines() if line.startswith("|")]
    assert [line[0].strip() for line in lines] == ["arm", "---", "plain", "embexp"]
    # one round: the times are plain's own, and the delta's interval is of embexp against plain
    assert float(lines[2][4]) == 1.0
    assert float(lines[3][4]) > 0
    assert not lines[2][8].strip()
    assert "to" in lines[3][8]
    assert lines[2][7] == " 0.800 (5 queries) "


def test_the_training_benchmark_says_what_the_framework_costs_at_identical_settings(tmp_path):
    model = tiny_transformer(tmp_path / "tiny")
    arms = ["library, identical", "embexp, identical"]
    ended = bench("--data", "docstrings:json", "--model", model, "--steps", 2, "--arms", *arms)
    assert ended.returncode == 0, ended.stderr
    lines = [line.split("|")[1:-1] for line in ended.stdout.splitlines() if line.startswith("|")]
    assert lines[2][5] == lines[3][5]  # the same batches: the same share of the tokens is real
    assert all(float(line[9]) > 0 for line in lines[2:])
    assert "At identical settings embexp takes" in ended.stdout


def test_the_encoding_benchmark_finds_the_same_embeddings(tmp_path, printed):
    output = printed("encoding.py", "--quick", "--model", tiny_transformer(tmp_path / "tiny"))
    (row,) = [line for line in lines_of(output) if line[0].startswith("docstrings")]
    assert float(row[7]) < 1e-5
    theirs, ours = row[8].split(",")
    assert float(theirs) == float(ours) > 0


def test_the_training_benchmark_says_how_to_go_on_without_its_data(tmp_path):
    ended = bench("--data", tmp_path / "nowhere")
    assert ended.returncode == 2
    assert "has no folder pqa_labeled" in ended.stderr
    assert "--data docstrings" in ended.stderr


def test_the_benchmark_of_pairs_prints_a_line_for_each_size():
    call = [sys.executable, "benchmarks/pairs.py", "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr
    lines = [line.split("|")[1:-1] for line in ended.stdout.splitlines() if line.startswith("|")]
    assert [line[0].strip() for line in lines] == ["rows", "---", "1,000", "2,000"]
    for line in lines[2:]:
        *stages, total = map(float, line[1:8])
        assert len(stages) == 6
        assert total == pytest.approx(sum(stages), abs=0.05 * 7)  # each is rounded to a tenth
        assert total > 0
        assert int(line[9]) > 100
    assert "2 times the rows take" in ended.stdout


def test_the_benchmark_of_pairs_sums_its_stages_and_compares_the_largest_size_with_the_smallest(monkeypatch, capsys):
    def apart(script, _, rows, *arguments, memory_gib=None):
        seconds = {"read": 1.0, "cut": 2.0, "leaks": 3.0, "rows": 4.0, "sampler": 5.0, "epoch": 6.0}
        times = 3 if "30" in str(arguments) or "30" in rows else 1
        return {stage: times * each for stage, each in seconds.items()} | {"cpu": 40.0, "peak": 200}

    monkeypatch.setattr(pairs, "apart", apart)
    pairs.report([10, 30], limit=None)
    printed = capsys.readouterr().out
    assert "| 10 | 1.0 | 2.0 | 3.0 | 4.0 | 5.0 | 6.0 | 21.0 | 40.0 | 200 |" in printed
    assert "| 30 | 3.0 | 6.0 | 9.0 | 12.0 | 15.0 | 18.0 | 63.0 | 40.0 | 200 |" in printed
    assert "3 times the rows take 3.0 times the time" in printed


def test_the_benchmark_of_looks_compares_both_measures_at_each_step_and_times_the_looks(printed):
    output = printed("looks.py", "--quick")
    assert "Shares are of the training's time without looks." in output
    lines = lines_of(output)
    assert [line[0] for line in lines] == ["static, 0.01", "static, 0.1"]
    for line in lines:
        but_the_last, every = (float(cell.split("%")[0]) for cell in line[3:5])
        assert int(line[1]) >= 1
        assert 0 <= but_the_last < every
        assert float(line[5].rstrip("%")) > 0
        assert -1 <= float(line[6].split()[0]) <= 1
    assert "(as configured; 20 dev queries): over 8 sets of weights the rank correlation is" in output


def test_the_share_of_looks_is_of_the_training_without_them():
    # 2 looks of 1 and 3 s (CPU: 2 and 4) in a training of 20 s (CPU: 40); one on all of dev takes 10 s of the processor
    found = {
        "looks": [{"seconds": 1.0, "cpu_seconds": 2.0}, {"seconds": 3.0, "cpu_seconds": 4.0}],
        "training": {"seconds": 20.0, "cpu_seconds": 40.0},
        "full": 10.0,
        "scores": [(5, 0.5, 0.25), (10, 0.75, 0.25)],
    }
    assert looks.line("static, 0.1", found) == [
        "static, 0.1", 2, "20.0", "5.0% (5.0%)", "20.0% (15.0%)", "50%", "0.375 (0.250 to 0.500)",
    ]  # fmt: skip


def test_what_is_timed_as_a_look_is_neither_a_comparison_nor_the_look_before_training():
    watched = looks.Watched(checks=1)
    score = watched._timed(lambda plan, arm: {"recall@10": 0.5})
    assert score(None, None) == {"recall@10": 0.5}
    assert watched.looks.times == 0
    watched._trains = True
    score(None, None)
    assert watched.looks.times == len(watched.looked) == 1


def test_a_clock_sums_the_blocks_that_it_is_entered_for():
    clock = Clock()
    for _ in range(2):
        with clock:
            sum(range(100_000))
    assert clock.times == 2
    assert clock.seconds > 0 < clock.cpu_seconds
    before = clock.seconds
    with pytest.raises(KeyError), clock:  # a block that fails counts
        raise KeyError
    assert clock.seconds > before


def test_the_mining_benchmark_prints_its_share_of_the_ideal():
    call = [sys.executable, "benchmarks/mining.py", "--passages", "64", "--latency", "0.05"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("64 passages, 192 questions, 32 calls of 0.05 s at a time: ")
    assert "% of the ideal 0.1 s; " in ended.stdout


def test_the_table_of_losses_ranks_by_dev_and_shows_the_spread_over_seeds(tmp_path):
    runs = {"mnrl": [(0.8, 0.7), (0.9, 0.8)], "cosent": [(0.95, 0.6)], "mnrl loss.shape=triplet": [(0.99, 0.9)]}
    for loss, scores in runs.items():
        for seed, (dev, test) in enumerate(scores):
            folder = tmp_path / f"{loss}{seed}".replace(" ", "-")
            (folder / ".hydra").mkdir(parents=True)
            name, _, variant = loss.partition(" ")
            (folder / ".hydra" / "overrides.yaml").write_text(f"[seed={seed}, {variant}]")
            chosen = f"{{loss: {name}, model: minilm, dataset: docstrings}}"
            (folder / ".hydra" / "hydra.yaml").write_text(f"hydra: {{runtime: {{choices: {chosen}}}}}")
            arm = {side: {"recall@10": value, "recall@1": 0.5} for side, value in (("dev", dev), ("test", test))}
            result = {"status": "completed", "metric": "recall@10", "verdict": "better", "seconds": {"training": 7}}
            result |= {"base": arm, "bm25": arm, "tuned": arm, "counts": {"queries": {"train": 9, "dev": 2, "test": 3}}}
            (folder / "result.json").write_text(json.dumps(result))
    call = [sys.executable, "benchmarks/losses.py", str(tmp_path)]
    ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    rows = [line for line in ended.stdout.splitlines() if line.startswith(("| mnrl", "| cosent"))]
    assert rows == [
        "| mnrl loss.shape=triplet | 1 | 0.990 | 0.900 | 0.500 | 1 better | 7 |",
        "| cosent | 1 | 0.950 | 0.600 | 0.500 | 1 better | 7 |",
        "| mnrl | 2 | 0.850 ± 0.050 | 0.750 ± 0.050 | 0.500 ± 0.000 | 2 better | 7 |",
    ]


def test_the_benchmark_of_processes_shows_that_two_make_the_losses_of_one(tmp_path):
    model = tiny_transformer(tmp_path / "tiny")
    call = [sys.executable, "benchmarks/processes.py", "--quick", "--model", str(model)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr
    lines = [line.split("|")[1:-1] for line in ended.stdout.splitlines() if line.startswith("|")]
    assert [line[0].split()[0] for line in lines[2:]] == ["1", "2"]
    assert [float(line[2]) > 0 for line in lines[2:]] == [True, True]
    found = re.search(r"Over 4 steps no loss differs by more than (\S+) of its value", ended.stdout)
    assert float(found[1]) < 1e-4


def test_the_filter_keeps_good_planted_questions_and_drops_the_faults_it_is_for():
    call = [sys.executable, "benchmarks/funnel.py"]
    ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=True)
    without_judge = ended.stdout.partition("with a judge")[0]
    rows = [line.split("|")[1:-1] for line in without_judge.splitlines() if line.startswith("| ")][1:]
    found = {row[0].strip(): (float(row[4]), float(row[5])) for row in rows}
    assert found["span in the passage"] == found["round trip"] == (1.0, 1.0)
    assert found["not a duplicate"] == (1.0, 0.7)  # 30 of 100 say the same in other words
    assert found["stands alone"][0] == 1.0
    assert found["stands alone"][1] > 0.7
    assert "Good questions kept: 512 of 512" in without_judge
    assert "good ones that look bad: 32 of 32 right" in ended.stdout


def tables(page, *arguments):
    call = [sys.executable, "benchmarks/tables.py", "--page", str(page), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env=environment)


def test_make_bench_puts_what_a_benchmark_prints_into_its_block_and_leaves_the_rest(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench: tables.py --help -->\nold\n<!-- end -->\nafter\n")
    assert tables(page).returncode == 0
    found = page.read_text()
    assert found.startswith("before\n<!-- bench: tables.py --help -->\nusage: tables.py")
    assert found.endswith("<!-- end -->\nafter\n")
    assert "\nold\n" not in found
    assert "cores" in found  # the machine's line


def test_without_a_copy_of_pubmedqa_make_bench_measures_docstrings_and_says_how_to_give_one(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- bench: encoding.py --quick --data DATA --help -->\n<!-- end -->\n")
    ended = tables(page, "--data", "")
    assert ended.returncode == 0, ended.stderr
    assert "make bench DATA=<folder with pqa_labeled/*.parquet>" in ended.stderr
    assert "usage: encoding.py" in page.read_text()


def test_mining_pubmedqa_offline_says_that_it_needs_a_copy():
    call = [sys.executable, "benchmarks/offline_mining.py", "pubmedqa"]
    ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "--data <folder with pqa_labeled/*.parquet>" in ended.stderr


def test_a_benchmark_that_fails_leaves_its_block_and_make_bench_says_so(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- bench: training.py --data DATA -->\nold\n<!-- end -->\n")
    ended = tables(page, "--data", str(tmp_path / "nowhere"))
    assert ended.returncode == 1
    assert "failed, and left as they were: training.py --data DATA" in ended.stderr
    assert "old" in page.read_text()


def test_make_bench_refuses_a_name_that_its_page_has_not(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- bench: search.py -->\n<!-- end -->\n")
    ended = tables(page, "serach")
    assert ended.returncode == 2
    assert "has no block of serach; it has search" in ended.stderr


class Parsed(Exception):
    """The command line was understood."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_block_of_the_benchmarks_page_has_a_command_that_its_benchmark_understands(command, monkeypatch):
    usual = argparse.ArgumentParser.parse_args

    def parse_args(parser, *args, **options):
        usual(parser, *args, **options)
        raise Parsed

    script, *words = [word.replace("DATA", "docstrings") for word in shlex.split(command)]
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(Parsed):
        runpy.run_path(str(REPOSITORY / "benchmarks" / script), run_name="__main__")


@pytest.mark.parametrize("script", sorted({command.split()[0] for command in COMMANDS}))
def test_a_benchmark_starts_from_a_plain_checkout_in_any_folder(script, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    call = [sys.executable, str(REPOSITORY / "benchmarks" / script), "--help"]
    ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert "--quick" in ended.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there_also_where_it_is_imported_late(script):
    missing = []
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("embexp", "benchmarks"):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                submodule = hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{name}")
                if not hasattr(module, name) and not submodule:
                    missing.append(f"{node.module}.{name}")
    assert missing == []


def test_only_make_bench_names_the_machine():
    names = [path.name for path in SCRIPTS if "machine()" in path.read_text()]
    assert names == ["measuring.py", "tables.py"]


def test_the_gpu_benchmark_measures_tiny_models_anywhere(printed):
    lines = lines_of(printed("gpu.py", "--quick"))
    assert [line[0] for line in lines] == ["tiny, mnrl, sdpa", "tiny, cached_mnrl, sdpa"]
    assert all(float(line[3].replace(",", "")) > 0 for line in lines)
    assert "396 rows trained; no GPU" in printed("gpu.py", "--quick", "--recipe")


def test_the_search_benchmark_finds_what_its_peers_find():
    call = [sys.executable, "benchmarks/search.py", "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr
    rows = [line.split("|")[1:-1] for line in ended.stdout.splitlines() if line.startswith("| ")][2:]
    found = {row[0].strip(): row[1:] for row in rows}
    assert all(float(row[0]) > 0 and int(row[2]) > 0 for row in found.values())
    difference, _, metrics = found["scored by sentence-transformers' InformationRetrievalEvaluator"][3].partition(
        " in "
    )
    assert float(difference) < 1e-6
    assert metrics.strip() == "29 metrics"
    assert float(found["hard negatives by sentence-transformers' mine_hard_negatives"][3]) == 1.0
    assert "3,000 passages scored by embexp under a limit of 8 GiB" in found


def test_the_startup_benchmark_has_a_line_for_each_command_and_run():
    call = [sys.executable, "benchmarks/startup.py", "--quick"]
    ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    lines = [line.split(" | ") for line in ended.stdout.splitlines() if line.startswith("| ")][2:]
    assert [line[0].removeprefix("| ") for line in lines] == [
        "`import hydra`", "`import embexp`", "`--help`", "`--cfg job`", "a mistyped override",
        "first run", "second run", "second run, `logger=wandb`",
    ]  # fmt: skip
    assert lines[0][4].startswith("1.00 (1.00 to 1.00)")
    assert all(float(line[1].split()[0]) > 0 for line in lines)
    assert [bool(line[2]) for line in lines] == [False] * 5 + [True] * 3


def test_the_benchmark_of_a_reranker_has_its_scores_and_times_it_beside_the_library(printed):
    lines = lines_of(printed("reranker.py", "--quick"))
    firsts = [line[0] for line in lines]
    assert firsts[:4] == ["base", "base + reranker", "tuned", "tuned + reranker"]
    assert [word in firsts[place] for place, word in ((6, "training"), (7, "scoring"))] == [True, True]
    assert all(float(line[4]) > 0 for line in lines[6:])


def test_the_benchmark_of_adapters_has_a_line_for_each_and_an_epoch_of_the_peer(printed):
    found = {line[0]: line[1:] for line in lines_of(printed("adapters.py", "--quick"))}
    there = ["lora"] if importlib.util.find_spec("peft") else []
    peer = "linear, base in the loop (sentence-transformers), one epoch"
    assert list(found) == ["nothing (base)", "linear", "mlp", "query_linear", *there, "full tuning", peer]
    for name in ("linear", "mlp", "query_linear", *there, "full tuning"):
        assert all(0 <= float(score) <= 1 for score in found[name][1:5])
        assert float(found[name][6]) == pytest.approx(2 * float(found[name][7]), abs=0.1)
    assert float(found[peer][7]) > 0


def test_the_benchmark_of_forgetting_has_a_line_for_each_share_and_says_which_a_run_keeps(printed):
    output = printed("forgetting.py", "--quick")
    found = {line[0]: line[1:] for line in lines_of(output)}
    assert list(found) == ["0", "0.25", "0.5", "0.75", "1"]
    assert sum("merge=true" in line[-1] for line in found.values()) == 1
    (kept,) = (line for line in found.values() if "merge=true" in line[-1])
    assert float(kept[0]) == max(float(line[0]) for line in found.values())
    assert f"sentence-transformers finds {kept[3].partition(',')[0]} on the guard set's test" in output


def test_the_benchmark_of_arms_has_a_line_for_each_and_names_the_one_to_run(printed):
    output = printed("arms.py", "--quick")
    found = {line[0]: line[1:] for line in lines_of(output)}
    arms = ["BM25", "base", "BM25 + base", "tuned", "BM25 + tuned", "adapter", "merged", "tuned + reranker"]
    assert set(arms) - set(found) == set()
    assert all(0 <= float(score) <= 1 for line in found.values() for score in line[:3])
    assert all(float(line[5]) > 0 for line in found.values())  # milliseconds of a question
    theirs, ours = (float(found) for found in re.search(r"mrr@10 ([\d.]+), by embexp ([\d.]+),", output).groups())
    assert theirs == ours > 0
    assert "takes embexp" in output
