"""Reads today's passages as the run's own were read: by the code and the settings of its mining, or of its data set.

Called by `drifting`, and by `retrain`, which mines only what is new of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from embexp.config.components import build
from embexp.data.manifest import Manifest
from embexp.data.retrieval_set import Splits
from embexp.errors import UserError
from embexp.mine import knowledge
from embexp.mine.knowledge import Knowledge
from embexp.mine.passages import Passage
from embexp.mine.sides import Sides
from embexp.results.finished import Finished
from embexp.results.result import data_digests


@dataclass(frozen=True)
class Today:
    """Passages with unique ids. units: passage id -> what was held out whole with it, the run's `document`.

    unreadable: file -> why it was not read. knowledge: what mining goes on from, where the data set was mined; splits:
    the data set as a run with these settings would read it, where it was not.
    """

    passages: Mapping[str, Passage]
    units: Mapping[str, str]
    unreadable: Mapping[str, str]
    knowledge: Knowledge | None = None
    splits: Splits | None = None

    @cached_property
    def texts(self) -> dict[str, str]:
        """Passage id -> whole text."""
        return {key: passage.whole for key, passage in self.passages.items()}

    @cached_property
    def data(self) -> dict[str, str] | None:
        """Digests of what a run would read, as its result.json has them; None where the data set was mined."""
        return None if self.splits is None else data_digests(self.splits)

    @cached_property
    def by_document(self) -> dict[str, list[str]]:
        """Document -> the ids of its passages, in order."""
        found: dict[str, list[str]] = {}
        for key, unit in self.units.items():
            found.setdefault(unit, []).append(key)
        return found


def read(run: Finished, manifest: Manifest, places: str | Sequence[str]) -> Today:
    """Read what `documents` names, which stands in the place of what the run's passages were read from.

    | the run's data set | places                                                          |
    |--------------------|-----------------------------------------------------------------|
    | mined from documents | a folder, a file, a glob, or a list of these                  |
    | docstrings         | packages or folders of Python sources                           |
    | any other          | the one path that the data set's `path` named                   |

    Relative places are of the folder that this is called in. Raises UserError where they can't be read so.
    """
    named = places_of(places)
    with run.started_from():  # where the run's own relative paths, its model's for one, start
        if manifest.mining is None:
            node = replaced(run.config["dataset"], named)
            splits: Splits = build(node, allowed=run.config["allowed_packages"])
            passages = knowledge.passages_of(splits.test)
            by_id = {each.id: each for each in passages}
            return Today(by_id, {key: each.document for key, each in by_id.items()}, {}, splits=splits)
        # a data set may come from elsewhere: it does not say itself what code may be run
        mining = mining_of({**manifest.mining, "allowed_packages": run.config["allowed_packages"]}, named)
        if mining["limit"] is not None:
            raise UserError(
                f"the run's data set was mined with limit={mining['limit']}, so that the run knew some documents "
                "alone, and others would look new. Mine without a limit, and run again"
            )
        found = knowledge.read(mining, Path(run.config["dataset"]["path"]))
        sides: Sides = build(mining["split"], allowed=mining["allowed_packages"])
        by_id = {each.id: each for each in found.passages}
        units = {key: sides.unit_of(each) for key, each in by_id.items()}
        return Today(by_id, units, found.unreadable, found)


def places_of(named: str | Sequence[str]) -> list[str]:
    """What `documents` names, wherever it is read from."""
    return [_absolute(place) for place in ([named] if isinstance(named, str) else named)]


def mining_of(mining: Mapping[str, Any], places: Sequence[str]) -> dict[str, Any]:
    """The config of mining that reads these places."""
    if mining["documents"] is None:
        return {**mining, "dataset": replaced(mining["dataset"], places)}
    return {**mining, "documents": list(places)}


def replaced(node: Mapping[str, Any], places: Sequence[str]) -> dict[str, Any]:
    """A data set's node that reads these places. Raises UserError for one that names no place, or takes one alone."""
    if "packages" in node:
        return {**node, "packages": list(places)}
    if "path" not in node:
        raise UserError(
            f"the run's data set ({node['_target_']}) has no path that could name today's copy; drift reads mined, "
            "pairs, beir, pubmedqa and docstrings"
        )
    if len(places) != 1:
        raise UserError(f"documents={list(places)}: the run's data set was read from one path; name today's copy of it")
    return {**node, "path": places[0]}


def _absolute(place: str) -> str:
    """The place wherever it is read from; a name that is no path (a package, a Hub data set) stays."""
    path = Path(place).expanduser()
    is_path = path.exists() or any(sign in place for sign in "*?[") or place.startswith((".", "/", "~"))
    return str(path.absolute()) if is_path else place
