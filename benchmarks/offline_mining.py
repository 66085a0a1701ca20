"""What questions made without any LLM are worth: MiniLM tuned on pseudo-queries, tested on what people wrote.

python benchmarks/offline_mining.py pubmedqa --data FOLDER [--out FOLDER] [key=value ...]
python benchmarks/offline_mining.py docstrings

| data       | documents                                    | test: questions that mining never sees |
|------------|----------------------------------------------|----------------------------------------|
| pubmedqa   | abstracts, a passage for each section        | the articles' questions                |
| docstrings | modules, a passage for each function or class | the docstrings' summary lines          |

Mining reads all documents, as a knowledge base is known when its model is trained; dev is pseudo-queries of documents
held out whole. The miner was built while looking at the half of the documents called `tuned on`; the other half is the
figure to quote. Everything after the data runs as `python -m embexp.mine` and `python -m embexp`; further words go to
the latter.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import data_at, search_path

METRICS = ["recall@1", "recall@10", "ndcg@10", "mrr@10"]
Row = Mapping[str, Any]


def pubmedqa(path: str) -> tuple[list[Row], list[Row]]:
    """Passages and questions of PubMedQA-L."""
    from embexp.data.splits import Shares
    from embexp.datasets.pubmedqa import load

    splits = load(path=path, name="pqa_labeled", split=Shares())
    passages = [
        {"_id": key, "text": text, "document": splits.test.documents[key]} for key, text in splits.test.corpus.items()
    ]
    return passages, _questions(splits)


def docstrings(_: str) -> tuple[list[Row], list[Row]]:
    """Passages and questions of the standard library: the qualified name is the heading, the rest the text."""
    from embexp.data.splits import Shares
    from embexp.datasets.docstrings import load

    splits = load(packages=["stdlib"], split=Shares())
    passages = [
        {
            "_id": key,
            "title": key,
            "text": text.removeprefix(key).strip(),
            "document": splits.test.documents[key],
        }
        for key, text in splits.test.corpus.items()
    ]
    return passages, _questions(splits)


DATA: dict[str, Callable[[str], tuple[list[Row], list[Row]]]] = {"pubmedqa": pubmedqa, "docstrings": docstrings}


def _questions(splits: Any) -> list[Row]:
    """Those of train and dev too: none is trained on here."""
    sides = (splits.train, splits.dev, splits.test)
    return [
        {"query": side.queries[query], "passages": side.relevant(query)} for side in sides for query in side.queries
    ]


def run(module: str, *words: str) -> None:
    """One of the two programs, in a process of its own; its output is shown."""
    call = [sys.executable, "-m", module, *words]
    print("$ python -m", module, *words, file=sys.stderr, flush=True)
    subprocess.run(call, check=True, env={**os.environ, "PYTHONPATH": search_path()}, stdout=sys.stderr)


def prepared(data: str, path: str, folder: Path) -> None:
    """Write the passages and questions, and mine them."""
    passages, questions = DATA[data](path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("passages", passages), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(
        "embexp.mine", f"documents={folder / 'passages.jsonl'}", f"out={folder / 'mined'}", "miner=sentences",
        f"real_questions={folder / 'questions.jsonl'}", "split.test=0", "questions.train=1", "questions.dev=1",
    )  # fmt: skip


def half(document: str) -> str:
    """Which half a document is in; the miner was built while looking at one of them."""
    return "held back" if int(hashlib.sha256(document.encode()).hexdigest(), 16) % 2 else "tuned on"


def table(folder: Path) -> str:
    """Base, BM25 and tuned on all questions and on each half, with the interval of tuned minus base."""
    import pandas as pd

    scores = pd.read_parquet(folder / "run" / "retrieval" / "per_query.parquet")
    halves = scores["document"].map(half)
    lines = [
        "| test questions | metric | BM25 | base | tuned | delta | 95 % interval | wins/ties/losses |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ("held back", "tuned on", "all"):
        lines += _rows(name, scores if name == "all" else scores[halves == name])
    result = json.loads((folder / "run" / "result.json").read_text())
    counts = result["counts"]
    lines.append(
        f"\n{counts['train_rows']} rows, {counts['steps']} steps, best on dev after {counts['best_step']}; "
        f"verdict on all: {result['verdict']}"
    )
    return "\n".join(lines)


def _rows(name: str, scores: Any) -> list[str]:
    from embexp.evaluation.significance import Scores, compare

    queries = scores["query_id"].tolist()
    document_of = dict(zip(queries, scores["document"], strict=True))
    values = {
        arm: {metric: Scores(queries, scores[f"{arm}.{metric}"].to_numpy()) for metric in METRICS}
        for arm in ("bm25", "base", "tuned")
    }
    deltas = compare(values["base"], values["tuned"], document_of=document_of)
    return [
        f"| {name} ({len(queries)}) | {metric} | {values['bm25'][metric].score:.3f} "
        f"| {values['base'][metric].score:.3f} "
        f"| {values['tuned'][metric].score:.3f} | {delta.absolute:+.3f} | {delta.ci_low:+.3f} to {delta.ci_high:+.3f} "
        f"| {delta.wins}/{delta.ties}/{delta.losses} |"
        for metric, delta in deltas.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=DATA)
    parser.add_argument("--data", type=data_at, help="for pubmedqa: a local copy of it")
    parser.add_argument("--out", type=Path, default=Path("outputs/offline_mining"), help="where everything is written")
    parser.add_argument("words", nargs="*", help="further key=value of python -m embexp")
    options = parser.parse_intermixed_args()
    if options.source == "pubmedqa" and options.data is None:
        parser.error(
            "pubmedqa is read from a local copy: --data <folder with pqa_labeled/*.parquet>; or try docstrings"
        )
    folder = (options.out / options.source).resolve()
    prepared(options.source, options.data, folder)
    run(
        "embexp", "dataset=mined", f"dataset.path={folder / 'mined'}", "logger=none", f"hydra.run.dir={folder / 'run'}",
        *options.words,
    )  # fmt: skip
    funnel = json.loads((folder / "mined" / "mining.json").read_text())
    print(f"{funnel['passages']} passages of {funnel['documents']} documents; queries: {funnel['questions']}; "
          f"kinds: {dict(Counter(funnel['kinds']))}; funnel: {funnel['funnel']}\n")  # fmt: skip
    print(table(folder))


if __name__ == "__main__":
    main()
