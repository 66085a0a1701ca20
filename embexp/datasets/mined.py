"""A folder that `python -m embexp.mine` wrote: BEIR's layout with slices, and with passages as training reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from embexp.data.manifest import digest_of
from embexp.data.retrieval_set import Mined, RetrievalSet, Splits
from embexp.data.splits import given, only_test
from embexp.datasets import beir
from embexp.errors import UserError, listed

RECORD = "mining.json"  # written last


def load(*, path: str) -> Splits:
    """Read the folder with its own splits and slices.

    Where pseudo-queries were cut out of passages (cloze.jsonl), train and dev search the passages without them, and so
    does test unless it has real questions. A set for evaluation alone (split.test=1) has an empty train and dev. Raises
    UserError when mining did not finish, or made no questions for train.
    """
    folder = Path(path).expanduser()
    if not (folder / RECORD).is_file():
        raise UserError(
            f"dataset.path={path} has no {RECORD}, which mining writes last; run python -m embexp.mine out={path} to "
            "its end, or set dataset=beir for a folder from elsewhere"
        )
    sets = beir.sets(folder)
    slices, record = _json(folder / "slices.json"), _json(folder / RECORD)
    missing = [name for name in ("train", "dev", "test") if name not in sets or not sets[name].queries]
    missing += ["test"] if not missing and not any(ids for name, ids in slices.items() if name != "paraphrase") else []
    for_evaluation = missing == ["train", "dev"] and record["config"]["split"]["test"] == 1
    if missing and not for_evaluation:
        raise UserError(
            f"dataset.path={path}: mining left {listed(missing)} without questions; mining.md there says where they "
            "went. Add documents, ask for more questions per passage, or loosen the filter"
        )
    cloze = {row["_id"]: row["text"] for row in map(json.loads, _file(folder / "cloze.jsonl").split("\n")[:-1])}
    reading = ["train", "dev"] if "real" in slices else ["train", "dev", "test"]
    first = next(iter(sets.values())).corpus  # of all sides
    whole = {key: digest_of(first[key]) for key in cloze if key in first}
    for name in reading:
        if name in sets:
            sets[name] = _with_texts(sets[name], cloze)
    splits = only_test(sets["test"]) if for_evaluation else given(sets["train"], sets["dev"], sets["test"])
    kept = {name: tuple(query for query in ids if query in splits.test.queries) for name, ids in slices.items()}
    notes = {f"mining: {name}": count for name, count in record["left_out"].items()}
    origin = {"path": path, "content": record["content"]}
    return replace(splits, slices=kept, notes=notes, origin=origin, mined=Mined(record["config"], whole))


def _with_texts(side: RetrievalSet, texts: dict[str, str]) -> RetrievalSet:
    return replace(side, corpus={key: texts.get(key, text) for key, text in side.corpus.items()})


def _json(file: Path) -> Any:
    try:
        return json.loads(_file(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON ({error.msg}); mine the folder again") from error


def _file(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"{file} is not there; mine the folder again")
    return file.read_text(encoding="utf-8")
