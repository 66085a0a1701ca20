"""Makes what a config node names, and nothing else: every `_target_` is held against the allowed packages once more.

`targets` checks by reading source; here the object is at hand. Called by whatever reads a config: `run`, `preparing`,
`training.fine_tuning`, `follower`, `sweep`, `mine`, `drift`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from embexp.config.places import moved, refuse_place
from embexp.config.targets import forbidden, nodes, resolve
from embexp.errors import UserError


def build(node: Mapping[str, Any], *, allowed: Sequence[str], without: Sequence[str] = ()) -> Any:
    """Instantiate a config node; data is never passed through here. Names of earlier versions are taken.

    allowed: packages that a target may live in beside places.PLACES. without: keys that are ours and not the targets',
    here and in the nodes below. Raises UserError when a target, nested ones included, lives outside them, before it is
    imported where that can be.
    """
    kept = _without(node, without)
    if problems := list(forbidden(kept)):
        raise UserError(*problems)
    for _, target in nodes(kept):
        _refuse_foreign(target, allowed)
    try:
        return instantiate(kept, _convert_="all")
    except InstantiationException as error:
        if error.__cause__ is not None:  # what the target itself raised says it better
            raise error.__cause__ from None
        raise


def _without(node: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    kept = {key: value for key, value in node.items() if key not in keys}
    if isinstance(target := kept.get("_target_"), str):
        kept["_target_"] = moved(target)
    inner = {
        key: _without(value, keys) for key, value in kept.items() if isinstance(value, Mapping) and "_target_" in value
    }
    return kept | inner


def _refuse_foreign(target: Any, allowed: Sequence[str]) -> None:
    if not isinstance(target, str):
        raise UserError(f"_target_ {target!r} must be the dotted path of a class or function")
    resolve(target, allowed=allowed)  # by its source, before anything of it is imported
    found = get_object(target)
    refuse_place(target, getattr(found, "__module__", None) or type(found).__module__, allowed=allowed)
