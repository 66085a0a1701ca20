"""Code search from docstrings: the summary line is the query, the rest the passage, the module the document.

Reads Python source with `ast`; nothing is imported or run. Works for the standard library, for any installed package
and for a folder of source files.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embexp.cache import json_kept
from embexp.data.retrieval_set import RetrievalSet, Splits
from embexp.data.splits import Shares, cut
from embexp.errors import UserError

SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip"}


def load(*, packages: list[str], split: Shares, include_private: bool = False, min_query_words: int = 3) -> Splits:
    """Read every docstring with a summary and a body into a query and a passage.

    | packages item | is read as                               |
    |---------------|------------------------------------------|
    | stdlib        | the running Python's standard library    |
    | a path        | every .py file below it                  |
    | a name        | the installed package of that name       |

    The passage is the qualified name, the signature and the docstring without its summary. Summaries with fewer than
    `min_query_words` words are left out, and those that their passage repeats (a signature, mostly); equal ones become
    one query with several relevant passages.
    Raises UserError when a package is not found or has no such docstring.
    """
    files = [
        (path, _module_name(path, root, prefix))
        for root, prefix in (_root(package) for package in packages)
        for path in _source_files(root, private=include_private)
    ]
    digests = [(hashlib.sha256(path.read_bytes()).hexdigest(), module) for path, module in files]
    queries, corpus, documents, notes = json_kept(
        "docstrings",
        [digests, include_private, min_query_words],
        lambda: _read(files, private=include_private, min_query_words=min_query_words),
    )
    if not corpus:
        raise UserError(
            f"dataset.packages={packages} has no docstring with a summary line, a blank line and a body; "
            "name other packages or a folder of Python sources"
        )
    return cut(RetrievalSet(queries, corpus, {name: {name: 1} for name in queries}, documents), split, notes=notes)


def _read(files: Sequence[tuple[Path, str]], *, private: bool, min_query_words: int) -> list[dict[str, Any]]:
    """Queries, corpus and documents by qualified name, and what was left out."""
    queries: dict[str, str] = {}
    corpus: dict[str, str] = {}
    documents: dict[str, str] = {}
    unreadable = repeated = 0
    for path, module in files:
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            unreadable += 1
            continue
        for name, signature, docstring in _documented(tree, module, private=private):
            summary, _, body = docstring.partition("\n\n")
            summary = " ".join(summary.split())
            if not body.strip() or len(summary.split()) < min_query_words or name in corpus:
                continue
            passage = f"{name}{signature}\n{body.strip()}"
            if " ".join(summary.casefold().split()) in " ".join(passage.casefold().split()):
                repeated += 1
                continue
            queries[name] = summary
            corpus[name] = passage
            documents[name] = module
    notes = {"files that are not valid Python": unreadable, "summaries that their passage repeats": repeated}
    return [queries, corpus, documents, notes]


def _root(package: str) -> tuple[Path, str]:
    """The folder or file to read and the name that its modules start with."""
    if package == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"]), ""
    path = Path(package).expanduser()
    if path.exists():
        return path.resolve(), path.resolve().name if (path / "__init__.py").exists() else ""
    looks_like_path = not all(part.isidentifier() for part in package.split("."))
    spec = None if looks_like_path else importlib.util.find_spec(package.partition(".")[0])
    if spec is None:
        raise UserError(f"dataset.packages: {package!r} is neither a folder, an installed package nor stdlib")
    if not spec.submodule_search_locations:
        if spec.origin and spec.origin.endswith(".py"):
            return Path(spec.origin), ""
        raise UserError(f"dataset.packages: {package!r} has no Python source (it is built in or compiled)")
    place = Path(spec.submodule_search_locations[0], *package.split(".")[1:])
    if place.with_suffix(".py").is_file():
        return place.with_suffix(".py"), package.rpartition(".")[0]
    if not place.is_dir():
        raise UserError(f"dataset.packages: {package!r} is not in the installed {package.partition('.')[0]!r}")
    return place, package


def _source_files(root: Path, *, private: bool) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    found: list[Path] = []
    for folder, inside, files in os.walk(root):
        # not walked into: what is installed beside the standard library is many times as large
        inside[:] = [name for name in inside if not _is_skipped(name) and (private or not _is_private(name))]
        names = (name for name in files if name.endswith(".py"))
        found += [Path(folder, name) for name in names if private or not _is_private(Path(name).stem)]
    yield from sorted(found)


def _is_skipped(folder: str) -> bool:
    return folder in SKIPPED_FOLDERS or re.match(r"\.|config-", folder) is not None


def _module_name(path: Path, root: Path, prefix: str) -> str:
    parts = [path.stem] if root.is_file() else list(path.relative_to(root).with_suffix("").parts)
    return ".".join([*([prefix] if prefix else []), *(part for part in parts if part != "__init__")]) or path.stem


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _documented(tree: ast.AST, qualifier: str, *, private: bool) -> Iterator[tuple[str, str, str]]:
    """Qualified name, signature and docstring of every documented class and function, in source order."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = re.sub(r"\s", "_", f"{qualifier}.{node.name}")
            if private or not _is_private(node.name):
                docstring = ast.get_docstring(node)
                if docstring:
                    yield name, _signature(node), docstring
                yield from _documented(node, name, private=private)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _documented(node, qualifier, private=private)


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    parts: Sequence[ast.AST] = node.bases if isinstance(node, ast.ClassDef) else [node.args]
    return f"({', '.join(ast.unparse(part) for part in parts)})"
