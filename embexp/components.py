"""Makes what a config node names, and nothing else: every `_target_` is held against the allowed packages once more.

`targets` checks by reading source; here the object is at hand. Called by `experiment`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from embexp.errors import UserError
from embexp.targets import ALWAYS_ALLOWED


def build(node: Mapping[str, Any], *, allowed: Sequence[str], without: Sequence[str] = ()) -> Any:
    """Instantiate a config node; data is never passed through here.

    allowed: packages beside our own and sentence-transformers. without: keys that are ours and not the targets', here
    and in the nodes below. Raises UserError when a target, nested ones included, lives outside them.
    """
    kept = _without(node, without)
    _refuse_foreign(kept, [*ALWAYS_ALLOWED, *allowed])
    try:
        return instantiate(kept, _convert_="all")
    except InstantiationException as error:
        if error.__cause__ is not None:  # what the target itself raised says it better
            raise error.__cause__ from None
        raise


def _without(node: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    kept = {key: value for key, value in node.items() if key not in keys}
    inner = {
        key: _without(value, keys) for key, value in kept.items() if isinstance(value, Mapping) and "_target_" in value
    }
    return kept | inner


def _refuse_foreign(node: Any, allowed: Sequence[str]) -> None:
    if isinstance(node, Mapping):
        if "_target_" in node:
            found = get_object(node["_target_"])
            module = getattr(found, "__module__", None) or type(found).__module__
            if module.partition(".")[0] not in allowed:
                raise UserError(f"_target_ {node['_target_']!r} is {module}'s; allowed are {', '.join(allowed)}")
        for value in node.values():
            _refuse_foreign(value, allowed)
    elif isinstance(node, list | tuple):
        for value in node:
            _refuse_foreign(value, allowed)
