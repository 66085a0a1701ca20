"""The shape of the code base: one direction of imports, every module and file described."""

import ast
import functools
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
# the flow of the design; a module imports only from those before it
ORDER = [
    "errors", "parallel", "parallel.machine", "parallel.processes", "parallel.meeting", "starting", "console",
    "progress", "stages", "libraries", "sweep", "durable", "cache", "config", "config.places", "config.targets",
    "config.value_types", "data", "data.retrieval_set", "data.manifest", "data.copies", "data.splits", "data.leaks",
    "hub", "datasets", "datasets.docstrings", "datasets.parquet", "datasets.pubmedqa", "datasets.nanobeir",
    "datasets.pairs", "datasets.beir", "datasets.mined", "datasets.as_published", "models", "models.folder", "stamp",
    "models.facts", "models.sources", "models.lora", "mine", "service", "service.journal", "service.budget",
    "service.request", "service.server", "models.vector_store", "models.remote", "models.embedding_model",
    "models.endpoint", "encoding", "encoding.parts", "encoding.tokenising", "encoding.embedding", "encoding.encoder",
    "encoding.tokens", "data.paraphrases", "evaluation", "evaluation.ranking", "evaluation.rough", "evaluation.search",
    "reranking", "reranking.pair_scores", "rows", "rows.teachers", "rows.negatives", "reranking.reordering",
    "rows.shapes", "evaluation.metrics", "evaluation.significance", "evaluation.evaluators", "training",
    "training.looks", "rows.conflicts", "rows.batches", "config.components", "training.losses", "tracking",
    "training.checkpoints", "models.adapters", "models.low_rank", "training.fast_steps", "parallel.shares",
    "forgetting", "forgetting.guard", "forgetting.merging", "training.trainer", "training.callbacks",
    "training.fine_tuning", "reranking.training", "results", "results.changes", "results.keys", "results.result",
    "reporting", "reporting.tables", "reporting.details", "arms", "arms.shown", "forgetting.shown", "reranking.shown",
    "reporting.report", "reporting.usage", "reranking.card", "reporting.card", "results.runs", "page.figures",
    "page.document", "page.queries", "page.content", "page", "page.writing", "preparing", "training.tuning",
    "reranking.reranker", "arms.costs", "arms.choice", "arms.learning_curve", "arms.measured", "experiment",
    "parallel.joining", "run", "parallel.follower", "config.checks", "config.choices", "arms.config", "config.fitting",
    "config.experiment", "resume", "page.__main__", "exit_codes", "sweep.reference", "sweep.settings", "sweep.space",
    "config.overrides", "config.arguments", "sweep.lease", "sweep.storage", "sweep.trial", "jobs", "jobs.job",
    "jobs.preloaded", "jobs.workers", "jobs.launcher", "sweep.study", "sweep.composing", "sweep.crew",
    "sweep.submitted", "sweep.summary", "sweep.running", "sweep.sweeper", "help", "cli", "__main__",
    "results.finished", "search", "search.lookup", "search.cli", "search.__main__", "runtimes", "export",
    "export.formats", "export.exporters", "export.exported", "export.cli", "export.__main__", "mine.pace",
    "mine.passages", "mine.sections", "mine.restructured", "mine.formats", "mine.documents", "mine.repeated",
    "mine.packing", "mine.chunker", "mine.sides", "mine.protocol", "mine.call", "mine.progress", "mine.client",
    "mine.loose_json", "mine.answers", "mine.prompts", "mine.llm", "mine.standalone", "mine.sentences", "mine.written",
    "mine.duplicates", "mine.round_trip", "mine.funnel", "mine.real", "mine.former", "mine.knowledge", "mine.summary",
    "mine.mining", "mine.config", "mine.cli", "mine.__main__", "compare", "compare.collected", "compare.groups",
    "compare.pairs", "compare.shown", "compare.coordinates", "compare.pages", "compare.cli", "compare.__main__",
    "dashboard", "dashboard.spec", "dashboard.views", "dashboard.cli", "dashboard.__main__", "drift", "drift.config",
    "drift.differences", "drift.two_sample", "drift.today", "drift.shift", "drift.questions", "drift.recall",
    "drift.verdict", "drift.drifting", "drift.shown", "drift.cli", "drift.__main__", "retrain", "retrain.config",
    "retrain.pointer", "retrain.attempts", "retrain.recipe", "retrain.unread", "retrain.renewed", "retrain.comparing",
    "retrain.decision", "retrain.retraining", "retrain.shown", "retrain.cli", "retrain.__main__",
]  # fmt: skip


@functools.cache
def modules() -> dict[str, Path]:
    root = REPOSITORY / "embexp"
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in root.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items() if name != "__init__"}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("embexp."):
            package = node.module.removeprefix("embexp").removeprefix(".")
            within = {f"{package}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= {package} | (within & set(ORDER))
    return found - {""}


def named_callers(docstring: str) -> list[str]:
    """The names in the sentence that says who calls a module, up to its end or a semicolon."""
    said = re.search(r"\bCalled by\b(.*?)(?:[;.](?=\s|$)|$)", docstring, re.DOTALL)
    return re.findall(r"`(?:python -m embexp\.)?([\w.]+)`", said[1]) if said else []


def meant(name: str, *, by: str) -> set[str]:
    """The modules that a name in the docstring of `by` stands for; none where it could be of two packages.

    Of its own package first, then one beside the packages, then by its full name, then all of a package, then the only
    one of this last name.
    """
    others = [module for module in ORDER if module != by]
    same = f"{by.rpartition('.')[0]}.{name}"
    packages = {module for module, path in modules().items() if path.name == "__init__.py"}
    if same in others:
        return {same}
    if name in packages:
        return {name} | {module for module in others if module.startswith(f"{name}.")}
    if name in others:
        return {name}
    leaves = {module for module in ORDER if module.rpartition(".")[2] == name}
    return leaves if len(leaves) == 1 else set()


@functools.cache
def loaded(path: Path) -> set[str]:
    """What a file imports, at once or when it is needed, by a statement or by its name."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return imported(path) | {name.removeprefix("embexp.") for name in texts | whole if name.startswith("embexp.")}


def test_every_module_has_its_place_in_the_flow():
    assert sorted(modules()) == sorted(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_earlier_ones(module):
    later = ORDER[ORDER.index(module) :]
    assert not imported(modules()[module]) & set(later)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_opens_with_its_job(module):
    assert ast.get_docstring(ast.parse(modules()[module].read_text()))


@pytest.mark.parametrize("module", ORDER)
def test_a_module_is_called_by_those_that_its_docstring_names(module):
    files = modules()
    names = named_callers(ast.get_docstring(ast.parse(files[module].read_text())))
    wrong = [name for name in names if not any(module in loaded(files[each]) for each in meant(name, by=module))]
    by = sorted(each for each in ORDER if each != module and module in loaded(files[each]))
    assert not wrong, f"{wrong} do not import it or may be of two packages; it is imported by {by}"


def test_a_name_of_a_caller_is_read_as_it_is_written():
    assert named_callers("Job. Called by `report`, by `page.content` and `python -m embexp.page`; `x` not. `y`.") == [
        "report", "page.content", "page"]  # fmt: skip
    assert meant("config", by="drift.recall") == {"drift.config"}
    assert meant("cli", by="help") == {"cli"}
    assert meant("follower", by="models.low_rank") == {"parallel.follower"}
    assert meant("measured", by="forgetting.merging") == {"arms.measured"}
    assert meant("card", by="reranking.card") == set()  # itself, or reporting.card
    assert meant("training", by="reranking.reranker") == {"reranking.training"}


@pytest.mark.parametrize("module", ORDER)
def test_a_module_and_its_functions_are_short_enough_to_read(module):
    text = modules()[module].read_text()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > 50} == {}
    assert len(text.splitlines()) <= 300


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_file_says_what_it_is_for(path):
    lines = path.read_text().splitlines()
    comments = [line for line in lines[:3] if line.startswith("# ") and "@package" not in line]
    assert comments, f"{path} does not open with a comment"


def test_every_row_of_the_fault_table_names_tests_that_exist():
    rows = [line for line in (REPOSITORY / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")][1:]
    written = {
        node.name
        for path in (REPOSITORY / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= written, row


def test_where_things_are_names_every_package_and_every_module_beside_them():
    section = (REPOSITORY / "docs" / "extending.md").read_text().partition("## Where things are")[2]
    named = set(re.findall(r"`(?:embexp/)?(\w+)(?:\.py)?`", section))
    flat = {name for name, path in modules().items() if path.parent.name == "embexp"}
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert sorted(flat | packages) == sorted(named - {"ORDER"})
