"""Asks a run's models: the passages that base and tuned find, side by side, the known answer marked.

`python -m embexp.search RUN "question"` is this; without a question it keeps asking for one. The corpus is embedded
once and kept in the cache; after that a question takes a fraction of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from embexp import cache
from embexp.cli import ends_with_one
from embexp.errors import UserError, counted

if TYPE_CHECKING:  # torch and transformers take seconds, which --help need not wait for
    from embexp.results.finished import Finished
    from embexp.search.lookup import Finder, Found, Known

CAPS = {"usd": float, "tokens": int, "calls": int}
ARMS = ("base", "tuned")
RERANKED = "reranked"
WIDE = 100  # columns from which on two lists fit beside each other
LINES = 4  # of a passage's text at most
CUT = (
    "the questions of this set were cut out of its passages (miner=sentences), and so were most headings: passages "
    "stand here as the run searched them"
)
TRAINED = "a question of train, which the tuned model has learnt from"


def main(words: Sequence[str]) -> None:
    """Search the passages of a finished run with its base and its tuned model."""
    parser = argparse.ArgumentParser(prog="python -m embexp.search", description=main.__doc__)
    parser.add_argument("run", help="the run's folder, such as outputs/<date>/<time>")
    parser.add_argument("question", nargs="?", help="without it, questions are read line by line until Ctrl-D")
    parser.add_argument("--top", type=int, default=5, help="passages to show (5)")
    parser.add_argument("--model", choices=[*ARMS, "both"], default="both", help="which model searches (both)")
    parser.add_argument("--rerank", action="store_true", help="show too what the run's reranker makes of the last list")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each question")
    for cap, kind in CAPS.items():
        told = f"cap on the {cap} of an endpoint's vectors in all, in the place of the run's"
        parser.add_argument(f"--model.budget.{cap}", type=kind, dest=cap, metavar="CAP", help=told)
    parser.add_argument("--changed-data", action="store_true", help="go on although the data are not those of the run")
    arguments = parser.parse_intermixed_args(list(words))
    with ends_with_one():
        if arguments.top < 1:
            raise UserError(f"--top {arguments.top}; it must be at least 1")
        _answer_all(arguments)


def _answer_all(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s", force=True)
    print("loading ...", file=sys.stderr)
    paid = logging.getLogger("embexp.models.remote")
    paid.setLevel(logging.INFO)  # what an endpoint is about to be sent is said first
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print is no answer
        finders, known = _loaded(arguments)
    paid.setLevel(logging.NOTSET)  # a question is sent as it is typed
    for question in [arguments.question] if arguments.question else _questions():
        _answer(question, finders, known, top=arguments.top, as_json=arguments.json)


def _loaded(arguments: argparse.Namespace) -> tuple[dict[str, Finder], dict[str, Known]]:
    start = time.perf_counter()
    from embexp.results.finished import opened
    from embexp.search.lookup import known_questions

    caps = {cap: value for cap in CAPS if (value := getattr(arguments, cap)) is not None}
    run = replace(opened(arguments.run), caps=caps)
    with cache.kept_in(run.cache_folder):
        splits = run.splits(changed_data=arguments.changed_data, by="--changed-data")
        finders = _finders(run, splits, arguments.model, rerank=arguments.rerank)
    size = counted(len(splits.test.corpus), "passage")
    if _cut_passages(splits.origin):
        print(CUT, file=sys.stderr)
    print(f"{size}, ready after {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return finders, known_questions(splits)


def _cut_passages(origin: Mapping[str, Any]) -> bool:
    file = Path(str(origin.get("path")), "cloze.jsonl")
    return file.is_file() and file.stat().st_size > 0


def _finders(run: Finished, splits: Any, model: str, *, rerank: bool) -> dict[str, Finder]:
    from embexp.search.lookup import Finder

    wanted = ARMS if model == "both" else (model,)
    if model == "both" and not run.has_model:
        print("this run trained nothing, so that there is only its base model", file=sys.stderr)
        wanted = ("base",)
    corpus = splits.test.corpus
    encoders = {arm: (run.base(splits) if arm == "base" else run.tuned())[1] for arm in wanted}
    finders = {arm: Finder(encoder, corpus) for arm, encoder in encoders.items()}
    if rerank:
        scorer, depth, weight = run.reranker()
        if weight == 0:
            print("dev gave this run's reranker the weight 0, so its order is that of the search", file=sys.stderr)
        finders[RERANKED] = Finder(encoders[wanted[-1]], corpus, scorer=scorer, depth=depth, weight=weight)
    return finders


def _questions() -> Iterator[str]:
    """What is typed, or piped in, line by line."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    with contextlib.suppress(ImportError):  # lines can be edited and called back where the system has it
        import readline  # noqa: F401
    print("Ask a question; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            line = input("\n? ").strip()
        except EOFError:
            return
        if line:
            yield line


def _answer(
    question: str, finders: Mapping[str, Finder], known: Mapping[str, Known], *, top: int, as_json: bool
) -> None:
    from embexp.data.splits import asked

    start = time.perf_counter()
    of_data = known.get(asked(question))
    found = {
        arm: finder.find(question, top=top, answers=of_data.answers if of_data else ())
        for arm, finder in finders.items()
    }
    seconds = time.perf_counter() - start
    if as_json:
        values = {"question": question, "known": asdict(of_data) if of_data else None, "seconds": round(seconds, 4)}
        print(json.dumps(values | {arm: asdict(each) for arm, each in found.items()}, ensure_ascii=False), flush=True)
        return
    show(question, of_data, found)


def show(question: str, known: Known | None, found: Mapping[str, Found]) -> None:
    """Print the lists: beside each other on a wide terminal, below each other on a narrow one and in a file."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 10_000  # a line a passage, however long
    console = Console(width=width, highlight=False, soft_wrap=not terminal, file=sys.stdout)
    console.print(Text(_about(question, known)))
    if terminal and width >= WIDE and len(found) > 1:
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in found:
            table.add_column(ratio=1)
        table.add_row(*(_list(arm, each, width // len(found) - 2, terminal) for arm, each in found.items()))
        console.print(table)
        return
    for arm, each in found.items():
        console.print(_list(arm, each, width, terminal))


def _about(question: str, known: Known | None) -> str:
    if known is None:
        return f"{question}\nnot a question of the data, so that no answer is known"
    part = f", slice {known.slice}" if known.slice else ""
    where = TRAINED if known.side == "train" else f"a question of {known.side}{part}"
    return (
        f"{question}\n{where}; known {'answer' if len(known.answers) == 1 else 'answers'}: {', '.join(known.answers)}"
    )


def _list(arm: str, found: Found, width: int, terminal: bool) -> Group:
    lines = [Text(f"\n{arm}{_places(found)}", style="bold")]
    for hit in found.hits:
        mark = "  <- known answer" if hit.known else ""
        head = f"{hit.place:>2}  {hit.score:.3f}  {hit.passage}{mark}"
        text = " ".join(hit.text.split())
        if not terminal:
            lines.append(Text(f"{head}: {text}"))
            continue
        most = LINES * (width - 4)
        lines.append(Text(head, style="bold green" if hit.known else "cyan"))
        lines.append(Text(text if len(text) <= most else f"{text[: most - 3]}...", style="green" if hit.known else ""))
    return Group(*lines)


def _places(found: Found) -> str:
    if not found.places:
        return ""
    return f" (known at place {', '.join(str(place) for place in sorted(found.places.values()))})"
