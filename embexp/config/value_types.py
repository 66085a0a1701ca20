"""What values a type annotation accepts, read from source.

Called by `checks` and `sweep.settings`; the parameters are found by `targets`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from embexp.config.targets import Definition, Parameter, named

Accepts = tuple[Callable[[Any], bool], str]


def mistake(value: Any, parameter: Parameter) -> str | None:
    """What the parameter accepts, in words, when `value` is not of its type; else None."""
    if parameter.annotation is None:
        return None
    accepts, words = _accepts(parameter.annotation, parameter.module)
    return None if accepts(value) else words


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_PLAIN: dict[str, Accepts] = {
    "str": (lambda v: isinstance(v, str), "a text"),
    "int": (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    "float": (_is_number, "a number"),
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "None": (lambda v: v is None, "null"),
}
_ANYTHING: Accepts = (lambda value: True, "anything")


def _accepts(annotation: ast.expr, module: str) -> Accepts:
    """A test for values of the annotated type and its name in words; types that cannot be read accept anything."""
    if isinstance(annotation, ast.Constant):
        if annotation.value is None:
            return _PLAIN["None"]
        return _accepts(ast.parse(str(annotation.value), mode="eval").body, module)
    if isinstance(annotation, ast.BinOp):
        return _any_of([_accepts(annotation.left, module), _accepts(annotation.right, module)])
    if isinstance(annotation, ast.Subscript):
        return _accepts_generic(annotation, module)
    name = ast.unparse(annotation).rpartition(".")[2]
    if name in _PLAIN:
        return _PLAIN[name]
    if name in ("list", "List", "tuple", "Tuple", "Sequence", "Iterable"):
        return (lambda v: isinstance(v, list), "a list")
    if name in ("dict", "Dict", "Mapping"):
        return (lambda v: isinstance(v, dict), "a mapping")
    definition = named(annotation, module)
    if definition is not None and isinstance(definition.node, ast.ClassDef):
        return _accepts_class(definition)
    if definition is not None and isinstance(definition.node, ast.Subscript | ast.BinOp):
        return _accepts(definition.node, definition.module)  # a type alias
    return _ANYTHING


def _accepts_generic(annotation: ast.Subscript, module: str) -> Accepts:
    name = ast.unparse(annotation.value).rpartition(".")[2]
    inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    if name == "Literal":
        values = [item.value for item in inner if isinstance(item, ast.Constant)]
        return (lambda v: v in values, "one of " + ", ".join(str(value) for value in values))
    if name == "Optional":
        return _any_of([_accepts(inner[0], module), _PLAIN["None"]])
    if name == "Union":
        return _any_of([_accepts(item, module) for item in inner])
    if name in ("list", "List", "Sequence", "Iterable") or (name in ("tuple", "Tuple") and len(inner) == 2):
        item, words = _accepts(inner[0], module)
        return (lambda v: isinstance(v, list) and all(item(each) for each in v), f"a list, each {words}")
    if name in ("dict", "Dict", "Mapping"):
        item, words = _accepts(inner[1], module)
        return (lambda v: isinstance(v, dict) and all(item(each) for each in v.values()), f"a mapping to {words}")
    return _ANYTHING


def _accepts_class(definition: Definition) -> Accepts:
    node = definition.node
    assert isinstance(node, ast.ClassDef)
    if any("Enum" in ast.unparse(base) for base in node.bases):
        values = [
            item.value.value
            for item in node.body
            if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
        ]
        return (lambda v: v in values, "one of " + ", ".join(str(value) for value in values))
    return (lambda v: isinstance(v, dict) and "_target_" in v, f"a {node.name}, written as a mapping with _target_")


def _any_of(options: Sequence[Accepts]) -> Accepts:
    # an enumeration beside `str` is how libraries write "one of these names": the enumeration is what they accept
    named = [option for option in options if option[1].startswith("one of ")]
    if named:
        options = [option for option in options if option[1] != "a text"]
    words = " or ".join(dict.fromkeys(words for _, words in options))
    return (lambda v: any(accepts(v) for accepts, _ in options), words)
