"""The groups of a config and the choices in each. Called by `arguments` and `help`.

Asks Hydra's sources one by one: Hydra's own listing copies all that is registered for every question, 3 ms each time.
"""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType


def choices(group: str, loader: ConfigLoader, config_dir: str | None) -> list[str]:
    """What can be chosen in a group such as `loss` or `hydra/launcher`; empty where there is no such group.

    config_dir: the user's own folder of configs, which adds to the groups.
    """
    found = _listed(group, loader, ObjectType.CONFIG)
    if config_dir:
        found |= {path.stem for path in Path(config_dir, group).glob("*.yaml")}
    return sorted(found)


def groups(loader: ConfigLoader, config_dir: str | None) -> list[str]:
    """The names of all groups that hold a choice, those inside others too, such as `hydra/launcher`."""
    own = Path(config_dir).rglob("*.yaml") if config_dir else ()
    found = {path.parent.relative_to(str(config_dir)).as_posix() for path in own} - {"."}
    inside = sorted(_listed("", loader, ObjectType.GROUP))
    while inside:
        group = inside.pop()
        inside += [f"{group}/{name}" for name in _listed(group, loader, ObjectType.GROUP)]
        if _listed(group, loader, ObjectType.CONFIG):
            found.add(group)
    return sorted(found)


def _listed(group: str, loader: ConfigLoader, kind: ObjectType) -> set[str]:
    sources = (source for source in loader.get_sources() if source.is_group(group))
    return {name for source in sources for name in source.list(group, kind)}
