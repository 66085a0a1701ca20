"""NanoBEIR (Zeta Alpha, 2024): thirteen sets of BEIR with 50 queries and some 5,000 passages each, to evaluate on.

Read from the Hub, as sentence-transformers has put it together (and as its translations are laid out), or from a local
copy: `<path>/{corpus,queries,qrels}/<subset>-*.parquet`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from embexp.data.retrieval_set import RetrievalSet, Splits, validated
from embexp.data.splits import only_test, unified
from embexp.datasets.parquet import folder_of, rows_of
from embexp.errors import UserError, listed

WHAT = "NanoBEIR"
SUBSETS = [
    "NanoArguAna", "NanoClimateFEVER", "NanoDBPedia", "NanoFEVER", "NanoFiQA2018", "NanoHotpotQA", "NanoMSMARCO",
    "NanoNFCorpus", "NanoNQ", "NanoQuoraRetrieval", "NanoSCIDOCS", "NanoSciFact", "NanoTouche2020",
]  # fmt: skip
COLUMNS = {"corpus": ["_id", "text"], "queries": ["_id", "text"], "qrels": ["query-id", "corpus-id"]}
EMPTY = "passages without a text"


def load(*, path: str, subsets: list[str], revision: str | None = None) -> Splits:
    """Read some of the subsets. Train and dev are empty: there is nothing to train on.

    | file                      | its columns                                           |
    |---------------------------|-------------------------------------------------------|
    | corpus/<subset>-*.parquet | _id, text                                             |
    | queries/<subset>-*.parquet| _id, text                                             |
    | qrels/<subset>-*.parquet  | query-id, corpus-id (an id, or a list): all relevant  |

    Each subset is searched in its own corpus, and the scores of several are averaged: `Splits.apart`. Ids begin with
    the subset's name. Queries without a relevant passage are left out, as are passages without a text, which are
    counted. A copy of a relevant passage is relevant, as everywhere in embexp.
    """
    if not subsets or (unknown := [name for name in subsets if name not in SUBSETS]):
        wrong = f"has {listed(unknown)}" if subsets else "is empty"
        raise UserError(f"dataset.subsets {wrong}; NanoBEIR has {', '.join(SUBSETS)}")
    files = [f"{kind}/{name}-*.parquet" for name in subsets for kind in COLUMNS]
    folder, commit = folder_of(path, revision=revision, files=files, what=WHAT)
    found = [_subset(folder, name) for name in dict.fromkeys(subsets)]
    sets = [validated(unified(one)) for one, _ in found]
    whole = RetrievalSet(
        {query: text for one in sets for query, text in one.queries.items()},
        {passage: text for one in sets for passage, text in one.corpus.items()},
        {query: grades for one in sets for query, grades in one.qrels.items()},
        {passage: passage for one in sets for passage in one.corpus},
    )
    splits = only_test(whole) if len(sets) > 1 else only_test(sets[0])
    return replace(
        splits,
        apart=tuple(sets) if len(sets) > 1 else (),
        notes={EMPTY: sum(empty for _, empty in found)},
        origin={"path": path, "subsets": ", ".join(subsets), "commit": commit},
    )


def _subset(folder: Path, name: str) -> tuple[RetrievalSet, int]:
    """The set, and how many passages have no text."""
    texts = {
        kind: {f"{name}:{row['_id']}": (row["text"] or "").strip() for row in _rows(folder, kind, name)}
        for kind in ("corpus", "queries")
    }
    corpus = {passage: text for passage, text in texts["corpus"].items() if text}
    empty = texts["corpus"].keys() - corpus.keys()
    qrels: dict[str, dict[str, int]] = {}
    for row in _rows(folder, "qrels", name):
        ids: Sequence[Any] = row["corpus-id"] if isinstance(row["corpus-id"], list) else [row["corpus-id"]]
        grades = {passage: 1 for each in ids if (passage := f"{name}:{each}") not in empty}
        qrels.setdefault(f"{name}:{row['query-id']}", {}).update(grades)
    qrels = {query: grades for query, grades in qrels.items() if grades}
    queries = {query: text for query, text in texts["queries"].items() if query in qrels and text}
    documents = {passage: passage for passage in corpus}
    return RetrievalSet(queries, corpus, qrels, documents), len(texts["corpus"]) - len(corpus)


def _rows(folder: Path, kind: str, name: str) -> Iterator[dict[str, Any]]:
    parts = sorted((folder / kind).glob(f"{name}-*.parquet"))
    if not parts:
        there = sorted(
            path.name.rpartition("-of-")[0].rpartition("-")[0] or path.name
            for path in (folder / kind).glob("*.parquet")
        )
        raise UserError(
            f"dataset.subsets={name}: {folder} has no {kind}/{name}-*.parquet; in {kind}/ it has "
            f"{listed(there) or 'nothing'}"
        )
    for part in parts:
        yield from rows_of(part, COLUMNS[kind], what=f"NanoBEIR's {kind}")
