"""PubMedQA (Jin et al., EMNLP 2019): each article's question is a query, each section of its abstract a passage.

Read from the Hub or from a local copy in the same layout: `<path>/<name>/*.parquet`.
"""

from __future__ import annotations

from dataclasses import replace

from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.data.splits import Shares, cut
from embexp.datasets.parquet import folder_of, rows_of
from embexp.errors import UserError

COLUMNS = ["pubid", "question", "context"]  # the others (long_answer, final_decision) are not read


def load(*, path: str, name: str, split: Shares, revision: str | None = None) -> Splits:
    """Read one configuration (`name`: pqa_labeled, pqa_artificial, pqa_unlabeled), cut by article.

    path: a Hub data set or a local folder. Articles without a question or context are dropped and counted.
    """
    whole, dropped, origin = read(path=path, name=name, revision=revision)
    return replace(cut(whole, split, notes=dropped), origin=origin)


def read(*, path: str, name: str, revision: str | None) -> tuple[RetrievalSet, dict[str, int], dict[str, str | None]]:
    """All articles of one configuration, what was dropped, with counts, and where they come from."""
    folder, commit = folder_of(path, revision=revision, files=[f"{name}/*.parquet"], what="PubMedQA")
    parts = sorted((folder / name).glob("*.parquet"))
    if not parts:
        found = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
        raise UserError(
            f"dataset.name={name}: {folder} has no {name}/*.parquet; it has {', '.join(found) or 'no folder'}"
        )

    queries: dict[str, str] = {}
    corpus: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    documents: dict[str, str] = {}
    dropped = 0
    for part in parts:
        for row in rows_of(part, COLUMNS, what="PubMedQA"):
            article, question = str(row["pubid"]), (row["question"] or "").strip()
            contexts = (row["context"] or {}).get("contexts") or []
            sections = [text.strip() for text in contexts if text and text.strip()]
            if not question or not sections:
                dropped += 1
                continue
            if article in queries:
                raise UserError(f"{part}: article {article} is there twice; keep one copy of each Parquet file")
            queries[article] = question
            qrels[article] = {f"{article}-{index}": 1 for index in range(len(sections))}
            corpus.update({f"{article}-{index}": text for index, text in enumerate(sections)})
            documents.update(dict.fromkeys(qrels[article], article))
    whole = RetrievalSet(queries, corpus, qrels, documents)
    return whole, {"articles without a question or context": dropped}, {"path": path, "name": name, "commit": commit}
