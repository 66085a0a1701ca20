"""A wandb dashboard: what it shows, that runs log what it reads, and what is sent to the server to make it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest

from embexp.config.arguments import checked_arguments
from embexp.dashboard import cli
from embexp.dashboard.spec import Panel, dashboard, shown
from embexp.errors import UserError
from tests.command import QUICK, REPOSITORY
from tests.wandb_files import read_back, runs
from tests.wandb_server import KEY, READER, REFUSED, serving

PAGE = (REPOSITORY / "docs" / "wandb.md").read_text()
COMMANDS = [line.split(" #")[0].strip() for line in PAGE.splitlines() if line.startswith("python -m embexp")]
NEEDED = "needs the extra embexp[wandb-dashboard]"


def panels(made):
    return [panel for section in made.sections for panel in section.panels]


def test_a_dashboard_has_curves_arms_and_deltas_at_each_place_and_importance_for_the_metric():
    made = dashboard("recall@10", by="loss", places=[1])
    assert panels(made) == [
        Panel("curves", "dev recall@1", ("dev/recall@1",), "loss"),
        Panel("curves", "dev recall@10", ("dev/recall@10",), "loss"),
        Panel("bars", "test recall@1", ("test/bm25/recall@1", "test/base/recall@1", "test/tuned/recall@1"), "loss"),
        Panel("bars", "test recall@10", ("test/bm25/recall@10", "test/base/recall@10", "test/tuned/recall@10"), "loss"),
        Panel(
            "bars",
            "delta of recall@1 on test, 95 % interval",
            ("test/ci_low/recall@1", "test/delta/recall@1", "test/ci_high/recall@1"),
        ),
        Panel(
            "bars",
            "delta of recall@10 on test, 95 % interval",
            ("test/ci_low/recall@10", "test/delta/recall@10", "test/ci_high/recall@10"),
        ),
        Panel("importance", "importance for dev/tuned/recall@10", ("dev/tuned/recall@10",)),
    ]
    assert made.best == "dev/tuned/recall@10"  # dev ranks
    assert made.columns[:4] == (
        *(("config", key) for key in ("loss", "model", "dataset")),
        ("summary", "dev/tuned/recall@10"),
    )


def test_the_metrics_own_place_is_among_the_panels_in_order():
    assert [panel.title for panel in panels(dashboard("ndcg@7"))][:6] == [
        f"dev ndcg@{place}" for place in (1, 3, 5, 7, 10, 100)
    ]


def test_a_metric_of_a_dimension_keeps_its_name_at_other_places():
    assert panels(dashboard("dim64.recall@10", places=[1]))[0].metrics == ("dev/dim64.recall@1",)


def test_a_metric_without_a_place_has_one_panel_of_each_kind():
    made = dashboard("similarity.spearman_cosine", by="model")
    assert [(panel.kind, panel.by) for panel in panels(made)] == [
        ("curves", "model"),
        ("bars", "model"),
        ("bars", None),
        ("importance", None),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metric": "recall@ten"}, "'recall@ten' is not a name, an @ and a number"),
        ({"metric": "recall@10", "places": [0]}, "no place 0"),
        ({"metric": "recall@10", "by": "lose"}, "grouped by 'lose'; choose one of loss, model, dataset"),
    ],
)
def test_what_no_run_has_is_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        dashboard(**arguments)


@pytest.fixture(scope="module")
def logged(tmp_path_factory, pairs):
    """What a real run has logged: history keys, config and summary."""
    pytest.importorskip("wandb", reason="needs the extra embexp[wandb]")
    folder = tmp_path_factory.mktemp("run")
    data = ["dataset=pairs", f"dataset.path={pairs}", "dataset.columns.group=group"]
    own = ["logger=wandb", "logger.mode=offline", "logger.per_query=true", "report_texts=false", "merge=true"]
    own += ["guard_dataset=docstrings", "guard_dataset.packages=[json,logging]", "max_forgetting=1"]
    ended = subprocess.run(
        [sys.executable, "-m", "embexp", *QUICK[:-1], *data, *own, f"hydra.run.dir={folder}"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (file,) = runs(folder)
    history, config, summary, *_ = read_back(file)
    return folder, {key for row in history for key in row}, config, summary


@pytest.mark.parametrize("metric", ["recall@10", "ndcg@10", "mrr@10"])
def test_a_run_logs_every_name_that_a_dashboard_reads(logged, metric):
    _, history, config, summary = logged
    made = dashboard(metric)
    for panel in panels(made):
        assert set(panel.metrics) <= (history if panel.kind == "curves" else set(summary)), panel
        assert panel.by is None or panel.by in config
    assert {key for kind, key in made.columns if kind == "config"} <= set(config)
    assert {key for kind, key in made.columns if kind == "summary"} <= set(summary)


def test_the_summary_has_base_tuned_delta_interval_and_p_of_each_metric_as_in_the_result(logged):
    folder, _, _, summary = logged
    result = json.loads((folder / "result.json").read_text())
    assert {"recall@1", "recall@100", "map@10"} <= result["delta"].keys()
    for metric, delta in result["delta"].items():
        assert summary[f"test/delta/{metric}"] == delta["absolute"]
        assert summary[f"test/base/{metric}"] == result["base"]["test"][metric]
        assert summary[f"test/tuned/{metric}"] == result["tuned"]["test"][metric]
        assert [summary[f"test/{key}/{metric}"] for key in ("ci_low", "ci_high", "p_value")] == [
            delta["ci_low"],
            delta["ci_high"],
            delta["p_value"],
        ]


def test_a_run_without_texts_sends_its_queries_as_ids_and_scores(logged):
    folder, history, *_ = logged
    assert "test/per_query" in history or any(key.startswith("test/per_query/") for key in history)
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/test/*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == [
        *("query_id", "document", "slice"),
        *(f"{arm}.recall@10" for arm in ("bm25", "base", "tuned", "delta")),
    ]
    queries = json.loads((folder / "result.json").read_text())["counts"]["queries"]["test"]
    assert len(content["data"]) == queries
    assert "what is" not in table.read_text()


@pytest.fixture
def server():
    with serving() as (environment, ended):
        yield environment, ended


def command(*words, folder, environment):
    """`python -m embexp.dashboard` in a process of its own, away from this machine's own login."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), kept.get("PYTHONPATH")]))
    own = {"HOME": str(folder), "NETRC": str(folder / "none"), "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-m", "embexp.dashboard", *words],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False, env={**kept, **own, **environment},
    )  # fmt: skip


def metrics_of(panel):
    config = panel["config"]
    return config.get("metrics") or [config["targetKey"]]


def assert_panels(sent, made):
    """sent: panels as wandb's server gets them."""
    kinds = {"curves": "Run History Line Plot", "bars": "Bar Chart", "importance": "Parameter Importance"}
    expected = [(kinds[panel.kind], list(panel.metrics), panel.by and f"{panel.by}.value") for panel in panels(made)]
    assert [(panel["viewType"], metrics_of(panel), panel["config"].get("groupBy")) for panel in sent] == expected
    for panel in sent:
        if "groupBy" in panel["config"]:
            assert panel["config"].items() >= {"aggregate": True, "groupAgg": "mean", "groupArea": "minmax"}.items()


def test_the_workspace_and_the_report_that_are_sent_have_the_panels(server, tmp_path):
    pytest.importorskip("wandb_workspaces", reason=NEEDED)
    environment, sent = server
    ended = command("somebody/embexp", "--at", "1,10", folder=tmp_path, environment=environment)
    assert ended.returncode == 0, ended.stderr
    made = dashboard("recall@10", places=[1, 10])
    workspace, report = (line["view"] for line in sent())
    for view in (workspace, report):
        assert view["displayName"] == made.name == "embexp loss comparison on recall@10"
        assert (view["entityName"], view["projectName"]) == ("somebody", "embexp")
    assert (workspace["type"], report["type"]) == ("project-view", "runs")

    section = workspace["spec"]["section"]
    sections = section["panelBankConfig"]["sections"]
    assert [each["name"] for each in sections] == [each.name for each in made.sections]
    assert_panels([panel for each in sections for panel in each["panels"]], made)
    (shown_runs,) = section["runSets"]
    assert shown_runs["sort"]["keys"] == [
        {"key": {"section": "summary", "name": "dev/tuned/recall@10"}, "ascending": False}
    ]
    assert shown_runs["runFeed"]["columnOrder"][:3] == ["run:displayName", "config:loss.value", "config:model.value"]
    assert "summary:test/ci_low/recall@10" in shown_runs["runFeed"]["columnOrder"]
    assert not section["settings"]["shouldAutoGeneratePanels"]

    blocks = report["spec"]["blocks"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert_panels([panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]], made)
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    assert headings == [each.name for each in made.sections]
    for grid in grids:
        places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in grid["panelBankSectionConfig"]["panels"]]
        assert places == [(0, 0), (8, 0)][: len(places)]  # beside each other
        assert grid["runSets"][0]["project"]["name"] == "embexp"

    lines = ended.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["workspace", "report"]
    assert all(line.split(": ")[1].startswith(environment["WANDB_BASE_URL"]) for line in lines)
    assert KEY not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("project", "changed", "words"),
    [
        ("somebody/embex", {}, "somebody has no project 'embex'; did you mean embexp?"),
        ("nobody/embexp", {}, "no user or team 'nobody'"),
        ("somebody/embexp", {"WANDB_API_KEY": REFUSED}, "did not take the key"),
        ("somebody/embexp", {"WANDB_API_KEY": READER}, "the key must be one that may write to somebody/embexp"),
        ("somebody/embexp", {"WANDB_API_KEY": ""}, "run `wandb login`, or set WANDB_API_KEY"),
        ("somebody/embexp", {"WANDB_MODE": "offline"}, "run `wandb online` or unset WANDB_MODE"),
    ],
    ids=["another project", "another team", "a wrong key", "a key that may only read", "no key", "offline"],
)
def test_what_stands_in_the_way_is_said_and_nothing_is_made(server, tmp_path, project, changed, words):
    pytest.importorskip("wandb_workspaces", reason=NEEDED)
    environment, sent = server
    ended = command(project, folder=tmp_path, environment={**environment, **changed})
    assert ended.returncode == 1
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert sent() == []
    for key in (KEY, REFUSED, READER):
        assert key not in ended.stderr


def in_process(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["dashboard", *words])
    try:
        cli.main()
    except SystemExit as end:
        return end.code, *capsys.readouterr()
    return 0, *capsys.readouterr()


def test_without_the_package_the_command_to_install_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "wandb_workspaces" else "there")
    code, _, said = in_process(monkeypatch, capsys, "somebody/embexp")
    assert code == 1
    assert "wandb_workspaces is not installed" in said
    assert "pip install .[wandb-dashboard]" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["embexp"], "'embexp' is not entity/project"),
        (["a/b/c"], "'a/b/c' is not entity/project"),
        (["a/b", "--at", "1,ten"], "--at 1,ten: it takes numbers"),
        (["a/b", "--metric", "recall@x"], "'recall@x' is not a name, an @ and a number"),
    ],
)
def test_a_mistake_in_the_arguments_is_said(monkeypatch, capsys, words, said):
    code, printed, mistakes = in_process(monkeypatch, capsys, *words)
    assert (code, printed) == (1, "")
    assert said in mistakes


def test_show_needs_neither_package_nor_key_and_sends_nothing(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    code, printed, _ = in_process(monkeypatch, capsys, "a/b", "--show", "--by", "model")
    assert code == 0
    assert printed.strip() == shown(dashboard("recall@10", by="model"))
    assert "test recall@3 (bars, grouped by model): test/bm25/recall@3, test/base/recall@3" in printed


def test_the_page_has_commands_to_check():
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_on_wandb_runs(server, tmp_path, line):
    _, _, module, *words = shlex.split(line)
    if module == "embexp":
        assert checked_arguments([word for word in words if word != "-m"], config_dir=None, sweep="-m" in words)
        return
    pytest.importorskip("wandb_workspaces", reason=NEEDED)
    environment, sent = server
    ended = command(*words, folder=tmp_path, environment=environment)
    assert ended.returncode == 0, ended.stderr
    assert len(sent()) == (0 if "--show" in words else 2)


def test_the_page_names_what_a_run_logs(logged):
    _, history, config, summary = logged
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ")][1:]
    kept = {"config": set(config), "history": history, "summary": set(summary) | {"caveat", "notes"}}
    for _, where, named, *_ in rows:
        if where.strip() == "table":
            continue
        for name in named.replace("`", "").split(","):
            assert name.strip().replace("<metric>", "recall@10") in kept[where.strip()], name
