"""A folder in BEIR's layout (Thakur et al., 2021): corpus.jsonl, queries.jsonl and qrels/<split>.tsv."""

from __future__ import annotations

import csv
from pathlib import Path

from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.data.splits import Shares, cut, cut_dev, given
from embexp.datasets.pairs import READERS, opened
from embexp.errors import UserError


def load(*, path: str, split: Shares) -> Splits:
    """Read a BEIR folder with its own splits; a missing dev is taken from train, and one split alone is cut.

    | file           | its lines hold                                                            |
    |----------------|---------------------------------------------------------------------------|
    | corpus.jsonl   | _id, text, title (put before the text), optionally document (else the id) |
    | queries.jsonl  | _id, text                                                                 |
    | qrels/test.tsv | query-id, corpus-id, score after one header line; also train, dev         |
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"dataset.path={path} is not a folder; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/"
        )
    found = sets(folder)
    if not found:
        raise UserError(f"{folder / 'qrels'} has no train.tsv, dev.tsv or test.tsv")
    if len(found) == 1:
        return cut(next(iter(found.values())), split)
    if "train" not in found or "test" not in found:
        raise UserError(f"{folder / 'qrels'} has {', '.join(found)}; with more than one split it needs train and test")
    if "dev" not in found:
        return cut_dev(found["train"], found["test"], split)
    return given(found["train"], found["dev"], found["test"])


def sets(folder: Path) -> dict[str, RetrievalSet]:
    """Split -> what the folder holds of it, for each of train, dev and test that has a file in qrels/."""
    corpus, documents = _texts(folder / "corpus.jsonl")
    queries, _ = _texts(folder / "queries.jsonl")
    found = {}
    for name in ("train", "dev", "test"):
        file = folder / "qrels" / f"{name}.tsv"
        if file.is_file():
            qrels = _qrels(file)
            unknown = [query for query in qrels if query not in queries]
            answered = [query for query, grades in qrels.items() if any(grade > 0 for grade in grades.values())]
            kept = {query: queries[query] for query in answered if query in queries}
            scored = {query: grades for query, grades in qrels.items() if query in kept or query in unknown}
            found[name] = RetrievalSet(kept, corpus, scored, documents)
    return found


def _texts(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    if not file.is_file():
        raise UserError(f"{file} is not there; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/")
    texts: dict[str, str] = {}
    documents: dict[str, str] = {}
    for where, row in READERS[".jsonl"](file):
        if "_id" not in row or not isinstance(row.get("text"), str):
            raise UserError(f"{where}: needs _id and a text; it has {', '.join(row)}")
        key = str(row["_id"])
        if key in texts:
            raise UserError(f"{where}: duplicate _id {key!r}")
        texts[key] = "\n".join(part for part in (str(row.get("title") or ""), row["text"]) if part.strip())
        documents[key] = str(row.get("document") or key)
    if not texts:
        raise UserError(f"{file} is empty")
    return texts, documents


def _qrels(file: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    rows = csv.reader(opened(file), delimiter="\t", quoting=csv.QUOTE_NONE)
    header = next(rows, [])
    if header[2:] and header[2].strip().lstrip("-").isdigit():
        raise UserError(f"{file} starts with a judgement; its first line must be query-id, corpus-id, score")
    for row in rows:
        try:
            query, passage, grade = row[0], row[1], int(row[2])
        except (IndexError, ValueError) as error:
            raise UserError(f"{file}, line {rows.line_num}: needs query-id, corpus-id and a whole score") from error
        qrels.setdefault(query, {})[passage] = grade
    if not qrels:
        raise UserError(f"{file} has no judgements")
    return qrels
