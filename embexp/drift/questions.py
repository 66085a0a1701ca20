"""The questions of a log, and those that a run was tested on. Called by `drifting`."""

from __future__ import annotations

from pathlib import Path

from embexp.data.manifest import Manifest
from embexp.data.splits import asked
from embexp.datasets.pairs import READERS
from embexp.errors import UserError
from embexp.results.finished import Finished

# mined questions are worded as no user would word them: a log always differs from them
MINED = ("unseen", "seen", "paraphrase")


def of_log(path: str) -> tuple[dict[str, str], int]:
    """The texts of the column `query`, each once, by its words; and how many rows were blank there.

    Raises UserError for a file that has no question, and for a row without the column or with something else in it.
    """
    file, blank = Path(path).expanduser(), 0
    found: dict[str, str] = {}
    for where, row in READERS[file.suffix.lower()](file):
        text = row.get("query", 0)
        if text is not None and not isinstance(text, str):
            raise UserError(f"{where}: needs a column query with a text; it has {', '.join(map(str, row))}")
        if text is None or not asked(text):  # people press Enter, and send a question mark
            blank += 1
            continue
        found.setdefault(asked(text), text.strip())
    if not found:
        raise UserError(f"queries={path} has no question in its column query ({blank:,} blank rows)")
    return found, blank


def of_run(run: Finished, manifest: Manifest) -> tuple[dict[str, list[str]], dict[str, str], str | None]:
    """Document -> ids of test's real questions; id -> text; why a log can't be compared with them, where it can't.

    Of a mined data set only the slice `real` is real users'; of any other all of test is.
    """
    import pandas as pd

    file = run.folder / "retrieval" / "per_query.parquet"
    if not file.is_file():
        return {}, {}, "the run kept no questions (it had no evaluator that ranks passages)"
    frame = pd.read_parquet(file)
    kept = frame[~frame["slice"].isin(MINED)] if manifest.mining is not None else frame
    if kept.empty:
        return {}, {}, "the run was tested on mined questions alone, and real ones always differ from these"
    if kept["query"].isna().any():
        return {}, {}, "the run kept no questions (report_texts=false)"
    groups: dict[str, list[str]] = {}
    for key, document in zip(kept["query_id"], kept["document"], strict=True):
        groups.setdefault(document, []).append(key)
    return groups, dict(zip(kept["query_id"], kept["query"], strict=True)), None
