"""What several test files share: tiny data, a tiny model, and a run of the real command line in this process."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="true")  # before any import of them
os.environ.update(OMP_NUM_THREADS="1")  # tiny models lose more to waiting threads than they gain
os.environ.update(EMBEXP_CACHE=tempfile.mkdtemp(prefix="embexp-cache-"))  # the tests share one of their own

import pandas as pd
import pytest

from embexp.data.retrieval_set import RetrievalSet
from tests import servers
from tests.command import Command
from tests.handbook import write_handbook

TOPICS = ["apple", "bread", "chair", "daisy", "eagle", "flute", "grape", "horse", "igloo", "jelly"]


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["EMBEXP_CACHE"], ignore_errors=True)


def toy_set(documents: int = 10, questions: int = 2) -> RetrievalSet:
    """Ten (or fewer) documents of one passage each, with questions whose words are in the passage."""
    corpus = {f"p{i}": f"the {TOPICS[i]} is known for its {TOPICS[i]} colour and size" for i in range(documents)}
    queries = {f"q{i}.{j}": f"question {j} about the {TOPICS[i]}" for i in range(documents) for j in range(questions)}
    qrels = {query: {f"p{query[1:].split('.')[0]}": 1} for query in queries}
    return RetrievalSet(queries, corpus, qrels, {passage: f"d{passage[1:]}" for passage in corpus})


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Take away what a command's main has told the logging of, or later tests would write to a closed stream."""
    before = [*logging.root.handlers]
    yield
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in before:
            logging.root.removeHandler(handler)


@pytest.fixture
def toy() -> RetrievalSet:
    return toy_set()


@pytest.fixture
def embexp(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Command]:
    """The command line, in this process and a folder of its own; the logging that it sets up is undone."""
    root, own = logging.getLogger(), logging.getLogger("embexp")
    before = (list(root.handlers), root.level, own.level)
    yield Command(monkeypatch, capfd, tmp_path)
    root.handlers[:], level, own_level = before
    root.setLevel(level)
    own.setLevel(own_level)


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """A small JSONL of pairs: 30 documents with two questions each."""
    words = [f"word{chr(97 + i)}{chr(97 + i)}" for i in range(26)] + ["lemon", "mango", "olive", "peach"]
    lines = [
        json.dumps(
            {
                "query": f"{kind} {word}",
                "passage": f"All about {word}: it is a {word} and nothing else",
                "group": f"doc-{word}",
            }
        )
        for word in words
        for kind in ("what is", "please explain to me the meaning of")
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL of pairs that a model can learn something from: 60 documents with two questions each."""
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    words = [f"w{chr(97 + i // 5)}{chr(97 + i % 5)}" for i in range(60)]
    file.write_text(
        "".join(
            json.dumps({"query": f"{ask} {word}", "passage": f"{word} stands in {word * 2} here", "group": word}) + "\n"
            for word in words
            for ask in ("what is", "where can one find")
        )
    )
    return file


@pytest.fixture
def sources(tmp_path: Path, pairs_file: Path) -> dict[str, list[str]]:
    """The arguments that choose each kind of data set, on small data in this folder."""
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    documents = sorted({(row["group"], row["passage"]) for row in rows})
    (beir / "corpus.jsonl").write_text("".join(json.dumps({"_id": d, "text": p}) + "\n" for d, p in documents))
    queries = [json.dumps({"_id": f"q{i}", "text": row["query"]}) + "\n" for i, row in enumerate(rows)]
    (beir / "queries.jsonl").write_text("".join(queries))
    qrels = "".join(f"q{i}\t{row['group']}\t1\n" for i, row in enumerate(rows))
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    copy = tmp_path / "PubMedQA" / "pqa_labeled"
    copy.mkdir(parents=True)
    context = [{"contexts": [f"part one of {row['passage']}", f"part two of {row['passage']}"]} for row in rows]
    frame = {"pubid": range(len(rows)), "question": [row["query"] for row in rows], "context": context}
    pd.DataFrame(frame).to_parquet(copy / "train-00000-of-00001.parquet")
    return {
        "pairs": ["dataset=pairs", f"dataset.path={pairs_file}", "dataset.columns.group=group"],
        "beir": ["dataset=beir", f"dataset.path={beir}"],
        "pubmedqa": ["dataset=pubmedqa", f"dataset.path={copy.parent}"],
        "docstrings": ["dataset=docstrings", "dataset.packages=[json,logging,email]"],
    }


@pytest.fixture
def handbook(tmp_path: Path) -> Path:
    """Twelve documents of two sections each, in the folder handbook."""
    folder = tmp_path / "handbook"
    write_handbook(folder)
    return folder


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Postgresql]:
    """A running PostgreSQL."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    try:
        with servers.postgresql(tmp_path_factory.mktemp("postgresql")) as server:
            yield server
    except servers.NotInstalled as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment for a running SLURM."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    try:
        with servers.slurm(tmp_path_factory.mktemp("slurm")) as environment:
            yield environment
    except servers.NotInstalled as error:
        pytest.skip(str(error))
