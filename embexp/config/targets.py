"""What a `_target_` in the config accepts, read from its source without importing it.

Importing sentence_transformers takes seconds; reading one of its files takes milliseconds. So the config can be
checked, and a forbidden target refused, before anything heavy loads. Called by `config.checks`; knows nothing of
Hydra.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embexp.config.places import moved, refuse_place
from embexp.errors import UserError

SECRETS = {"token", "hub_token", "auth_token", "use_auth_token", "access_token", "api_key", "password", "secret"}
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True)
class Definition:
    """Where a name is defined: `node` of the module `module`, after following re-exports."""

    module: str
    node: ast.AST

    @property
    def package(self) -> str:
        """The top-level package that the object really lives in."""
        return self.module.partition(".")[0]


@dataclass(frozen=True)
class Parameter:
    """One parameter: `annotation` is None when the source has none; it is read in the scope of `module`."""

    name: str
    module: str
    annotation: ast.expr | None
    required: bool


def resolve(target: str, *, allowed: Sequence[str]) -> Definition:
    """Find the definition behind a dotted path.

    Raises UserError when nothing is there or when the object lives outside PLACES and the further `allowed` packages,
    whatever the path says: `package.module.torch.load` is torch's.
    """
    if any(part.startswith("_") for part in target.split(".")):
        raise UserError(f"_target_ {target!r} has a private part; it must be the dotted path of a class or function")
    definition = find(target)
    if definition is None:
        now = f"; it is {moved(target)} now" if moved(target) != target else ""
        raise UserError(f"_target_ {target!r} was not found; it must be the dotted path of a class or function{now}")
    if isinstance(definition.node, ast.Module):
        raise UserError(f"_target_ {target!r} is a module; it must be a class or function in it")
    refuse_place(target, definition.module, allowed=allowed)
    owner = find(target.rpartition(".")[0])
    is_method = isinstance(definition.node, ast.FunctionDef | ast.AsyncFunctionDef)  # an enumeration's lambda is none
    if is_method and owner is not None and isinstance(owner.node, ast.ClassDef):
        raise UserError(f"_target_ {target!r} is a method; it must be a class or function")
    return definition


def forbidden(node: Any, path: str = "") -> Iterator[str]:
    """What no config may say, at any depth: code from outside, a secret, a text that would be filled in later."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            place = f"{path}.{key}" if path else str(key)
            if key in ("_args_", "_recursive_"):
                yield f"{place} is not taken; give arguments by name"
            elif key == "trust_remote_code" and value not in (False, None):
                yield f"{place}={value!r} would run code that comes with a model; only false is taken"
            elif key in SECRETS and isinstance(value, str):  # the value is not repeated
                yield f"{place}: a key never enters a config, which is written to files; set it in the environment"
            else:
                yield from forbidden(value, place)
    elif isinstance(node, list | tuple):
        for position, value in enumerate(node):
            yield from forbidden(value, f"{path}[{position}]")
    elif isinstance(node, str) and re.search(r"\$\{", node):  # escaped once, so it would be filled in when built
        yield f"{path} holds ${{...}} as text; write out what it should be"


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and `_target_` of every node that has one, at any depth, lists included."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node["_target_"]
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for position, value in enumerate(node):
            yield from nodes(value, f"{path}[{position}]")


@functools.cache
def find(target: str) -> Definition | None:
    """The definition behind a dotted path, or None. Never imports anything."""
    parts = target.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if _source(module) is not None:
            return _attribute(Definition(module, _tree(module)), parts[end:])
    return None


def parameters(definition: Definition) -> dict[str, Parameter] | None:
    """The parameters of a class or function by name; None where its source accepts any (`**kwargs`)."""
    node = definition.node
    if isinstance(node, ast.ClassDef):
        if _is_dataclass(node):
            return _dataclass_fields(definition)
        for cls in _lineage(definition):
            for item in cls.node.body:  # type: ignore[attr-defined]
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    return _arguments(Definition(cls.module, item), skip=1)
        return {}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return _arguments(definition, skip=0)
    return None


# --- finding ---------------------------------------------------------------------------------------------------------


@functools.cache
def _source(module: str) -> Path | None:
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # finds a top-level package without importing it
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") and not rest else None
    for root in spec.submodule_search_locations:
        place = Path(root, *rest)
        for candidate in (place / "__init__.py", place.with_suffix(".py")):
            if candidate.is_file() and (rest or candidate.name == "__init__.py"):
                return candidate
    return None


@functools.cache
def _tree(module: str) -> ast.Module:
    path = _source(module)
    assert path is not None, module
    return ast.parse(path.read_text(encoding="utf-8"))


def _attribute(definition: Definition, names: Sequence[str]) -> Definition | None:
    found: Definition | None = definition
    for name in names:
        found = _member(found, name) if found else None
    return found


def _member(definition: Definition, name: str) -> Definition | None:
    node, module = definition.node, definition.module
    if not isinstance(node, ast.Module | ast.ClassDef):
        return None
    for item in _statements(node.body):
        if isinstance(item, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and item.name == name:
            return Definition(module, item)
        if isinstance(item, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in item.targets):
            return Definition(module, item.value)
        if isinstance(item, ast.ImportFrom | ast.Import):
            imported = _imported(item, module, name)
            if imported is not None:
                return imported
    if isinstance(node, ast.Module) and _source(f"{module}.{name}") is not None:
        return Definition(f"{module}.{name}", _tree(f"{module}.{name}"))
    return None


def _imported(item: ast.ImportFrom | ast.Import, module: str, name: str) -> Definition | None:
    for alias in item.names:
        if isinstance(item, ast.ImportFrom) and (alias.asname or alias.name) == name:
            return find(f"{_absolute(item, module)}.{alias.name}")
        if isinstance(item, ast.Import) and (alias.asname or alias.name.partition(".")[0]) == name:
            return find(alias.name if alias.asname else name)
    return None


def _absolute(item: ast.ImportFrom, module: str) -> str:
    if not item.level:
        return item.module or ""
    path = _source(module)
    is_package = path is not None and path.name == "__init__.py"
    parts = module.split(".")
    base = parts[: len(parts) - item.level + is_package]
    return ".".join([*base, item.module] if item.module else base)


def _statements(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    flat: list[ast.stmt] = []
    for item in body:
        if isinstance(item, ast.If | ast.Try):  # conditional imports and definitions
            flat += _statements([*item.body, *item.orelse])
        else:
            flat.append(item)
    return flat


# --- reading signatures ----------------------------------------------------------------------------------------------


def _lineage(definition: Definition) -> list[Definition]:
    """The class and its bases, nearest first (depth first, which is enough to find an `__init__`)."""
    found = [definition]
    assert isinstance(definition.node, ast.ClassDef)
    for base in definition.node.bases:
        resolved = named(base, definition.module)
        if resolved is not None and isinstance(resolved.node, ast.ClassDef):
            found += _lineage(resolved)
    return found


def named(expression: ast.expr, module: str) -> Definition | None:
    """The definition behind a name as it is written in `module`, or None."""
    return _attribute(Definition(module, _tree(module)), ast.unparse(expression).split("."))


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _dataclass_fields(definition: Definition) -> dict[str, Parameter]:
    fields: dict[str, Parameter] = {}
    for cls in reversed(_lineage(definition)):
        assert isinstance(cls.node, ast.ClassDef)
        for item in cls.node.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            value = ast.unparse(item.value) if item.value else ""
            if "ClassVar" in ast.unparse(item.annotation) or "init=False" in value:
                continue
            required = item.value is None or (value.startswith("field(") and "default" not in value)
            fields[item.target.id] = Parameter(item.target.id, cls.module, item.annotation, required)
    return fields


def _arguments(definition: Definition, *, skip: int) -> dict[str, Parameter] | None:
    assert isinstance(definition.node, Function)
    arguments = definition.node.args
    if arguments.kwarg:
        return None
    positional = [*arguments.posonlyargs, *arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    named = [(arg, index < first_default) for index, arg in enumerate(positional)][skip:]
    named += [(arg, default is None) for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return {arg.arg: Parameter(arg.arg, definition.module, arg.annotation, required) for arg, required in named}
